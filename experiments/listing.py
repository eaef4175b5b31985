"""What there is: every table of plug-ins, from the file beside this one while that is current.

Importing the tables takes seconds, since they hold the functions themselves. ``listing.json`` holds
their text with a digest of the sources that it was read from; where a source has changed since, the
tables are read anew. ``python -m experiments.listing`` writes the file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from fedrobust.spec import SpecError, suggest

Entry = dict[str, str]
FILE = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
SOURCES = (
    "adversarial",
    "aggregation",
    "attacks",
    "data",
    "ensemble",
    "models",
    "redundancy",
    "training",
)
OTHERS = "plug-ins of others"
# Written out: ``plugins.KINDS``, which holds them, would import torch.
GROUPS = tuple(
    f"fedrobust.{name}"
    for name in ("models", "datasets", "partitions", "losses", "metrics", "rules", "attacks")
)
FILES = (
    "experiments/catalogue.py",
    "experiments/docs/formulas.toml",
    "fedrobust/docstrings.py",
)


def tables(kind: str | None = None) -> dict[str, list[Entry]]:
    """Return kind -> entries with name, what, parameters, paper.

    Raises
    ------
    SpecError
        For an unknown kind.
    """
    result = _kept() or _read()
    if kind is None:
        return result
    if kind not in result:
        raise SpecError(f"unknown kind {kind!r}; {suggest(kind, list(result))}")
    return {kind: result[kind]}


def with_others(kind: str | None, files: Iterable[Path]) -> dict[str, list[Entry]]:
    """Return ``tables`` and, as a last one, the plug-ins of others: in files, and in packages.

    A package that cannot be loaded is listed with the reason.
    """
    points = list(importlib.metadata.entry_points().select(group=GROUPS[0]))
    for group in GROUPS[1:]:
        points += importlib.metadata.entry_points(group=group)
    result = tables(None if kind == OTHERS else kind)
    if not points and not list(files):
        return result if kind != OTHERS else {OTHERS: []}
    from experiments import others  # torch: only where there is something to load

    found = {OTHERS: others.entries(files)}
    return found if kind == OTHERS else (result | found if kind is None else result)


def write(file: Path = FILE) -> None:
    """Read the tables and keep them."""
    text = json.dumps({"digest": digest(), "tables": _read()}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def digest() -> str:
    """Return the digest of the sources of all tables, names and contents."""
    paths = [ROOT / name for name in FILES]
    for package in SOURCES:
        paths += sorted((ROOT / "fedrobust" / package).rglob("*.py"))
    found = hashlib.sha256()
    for path in paths:
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def _kept() -> dict[str, list[Entry]] | None:
    """Return the tables of the file, unless it is not there or older than a source."""
    if not FILE.is_file():
        return None
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    found: dict[str, list[Entry]] = kept["tables"]
    return found if kept["digest"] == digest() else None


def _read() -> dict[str, list[Entry]]:
    from experiments import catalogue

    return catalogue.tables()


if __name__ == "__main__":
    write()
