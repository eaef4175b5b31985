"""Which floor each module stands on, who imports whom, and what breaks the order.

The layer test and the measures of the house share these functions. Files are parsed, not run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("fedrobust", "strategies", "clients", "experiments")
# From the ground floor up. A module belongs to the longest prefix that fits; a file may import its
# own floor and those below, as long as no circle of files comes of it.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "fedrobust.experiment", "fedrobust.experiment.schema", "fedrobust.seeds", "fedrobust.spec",
        "fedrobust.vector", "fedrobust.version", "fedrobust.cores", "fedrobust.evaluation",
        "fedrobust.packages", "fedrobust.docstrings", "fedrobust.matrix", "fedrobust.model_layers",
        "fedrobust.ranges", "fedrobust.threads", "fedrobust.text", "fedrobust.failures",
        "fedrobust.returned",
    ),
    ("fedrobust.aggregation", "fedrobust.models", "fedrobust.data", "fedrobust.batchnorm"),
    (
        "fedrobust.adversarial", "fedrobust.redundancy", "fedrobust.attacks", "fedrobust.training",
        "fedrobust.adversary",
    ),
    (
        "fedrobust.ensemble", "fedrobust.cohort", "fedrobust.simulation", "fedrobust.inference",
        "fedrobust.distributed", "fedrobust.fleet", "fedrobust.scheme", "fedrobust.stepping",
    ),
    (
        "fedrobust.experiment.validate", "fedrobust.experiment.load", "fedrobust.runs",
        "fedrobust.experiment.auto",
        "fedrobust.experiment.against_data",
        "fedrobust.testing", "fedrobust.conformance", "fedrobust.secret", "fedrobust.config",
        "fedrobust.checks", "fedrobust.plugins",
        "fedrobust.options",
        "fedrobust.rundir", "fedrobust.checkpoint",
    ),
    ("fedrobust.flower",),
    ("strategies", "clients"),
    ("experiments", "fedrobust"),
)  # fmt: skip
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PEERS = {"strategies": "clients", "clients": "strategies"}  # these do not know each other


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the project by its dotted name; a package is its ``__init__``."""
    found = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Iterable[str]) -> set[str]:
    """Return every module that a file imports anywhere: in functions and for types only as well.

    ``from package import name`` is an import of ``package.name`` where that is a module, and of
    the package where it is anything else that the package defines.
    """
    names = set(known)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: relative import")
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & names
            found |= {base} if inner - names else set()
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """Return module -> the project's modules that it imports."""
    files = modules(root)
    return {name: imports(path, files) & files.keys() - {name} for name, path in files.items()}


def floor(module: str) -> int:
    """Return a module's floor: that of the longest prefix listed in ``FLOORS``.

    Raises
    ------
    ValueError
        For a package of the library that stands on no floor.
    """
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        # Not for its parts: ``fedrobust`` itself stands on the top floor, with the doors to all
        # others.
        if name in FLOOR_OF and (name != "fedrobust" or module == "fedrobust"):
            return FLOOR_OF[name]
    raise ValueError(f"{module} stands on no floor: list its package in FLOORS")


def upward(edges: Mapping[str, set[str]]) -> list[str]:
    """Return the imports that go up a floor, or across between strategies and clients."""
    return [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in sorted(others)
        if module != "fedrobust"  # fedrobust.simulate opens the floors above, in its functions
        and (
            floor(other) > floor(module)
            or PEERS.get(module.split(".")[0]) == other.split(".")[0]
        )
    ]  # fmt: skip


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the circles of files: strongly connected components of two and more, sorted."""
    reach = {name: _reached(name, edges) for name in edges}
    found = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in edges
        if name in reach[name]
    }
    return sorted((list(c) for c in found), key=lambda c: (-len(c), c))


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen
