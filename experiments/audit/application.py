"""A Flower app in a folder: what its pyproject.toml says, and what the folder holds."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrobust.experiment.schema import ConfigError
from fedrobust.flower._compat_apps import flatten_dict, fuse_dicts, get_project_config

IGNORED = {".git", "__pycache__", ".venv", "venv", "node_modules", ".ruff_cache", ".mypy_cache"}
LARGE = 16 * 2**20  # bytes: larger files are linked into a cell's copy of the folder, not copied
NODES = 10  # where the app's pyproject.toml names no number


@dataclass(frozen=True)
class Application:
    """An app as its folder describes it; none of its code has been imported.

    Attributes
    ----------
    run_config
        The app's own ``[tool.flwr.app.config]`` with the overrides, flat.
    nodes
        How many nodes the audit simulates.
    changed
        What of that the call says and not the folder: "overrides" and "nodes".
    """

    folder: Path
    name: str
    server: str
    client: str
    run_config: dict[str, Any] = field(default_factory=dict)
    nodes: int = NODES
    changed: dict[str, Any] = field(default_factory=dict)


def read(
    folder: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    nodes: int | None = None,
) -> Application:
    """Read an app's pyproject.toml.

    Raises
    ------
    ConfigError
        If the folder holds no Flower app, for an override of a key that the app does not have, or
        for fewer than three nodes.
    """
    path = Path(folder).expanduser().resolve()
    try:
        document = get_project_config(path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError([f"{folder} is no folder of a Flower app: {error}"]) from error
    flower = document["tool"]["flwr"]["app"]
    try:
        config = fuse_dicts(flatten_dict(flower.get("config", {})), dict(overrides or {}))
    except ValueError as error:
        raise ConfigError([f"{folder}: {error}"]) from error
    count = nodes if nodes is not None else _declared(document)
    if count < 3:
        raise ConfigError([f"an audit needs at least 3 nodes, got {count}"])
    parts = flower["components"]
    name = str(document["project"]["name"])
    changed = {"overrides": dict(overrides or {})} | ({} if nodes is None else {"nodes": nodes})
    return Application(path, name, parts["serverapp"], parts["clientapp"], config, count, changed)


def _declared(document: Mapping[str, Any]) -> int:
    """Return the number of nodes of the app's own simulation, where it is told."""
    federations = document["tool"]["flwr"].get("federations", {})
    for held in federations.values():
        if isinstance(held, Mapping):
            options = held.get("options", {})
            if isinstance(count := options.get("num-supernodes"), int):
                return count
    return NODES


def tree_hash(folder: Path) -> str:
    """Return the SHA-256 of every path, kind and content under a folder, in order of path.

    Links are hashed as links. Folders that tools write (``__pycache__``, ``.git``) are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(walk(folder)):
        # NUL ends a path, since no path holds one: two trees never read alike.
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        if path.is_symlink():
            digest.update(b"link\0" + os.readlink(path).encode())
        elif path.is_file():
            digest.update(b"file\0" + hashlib.sha256(path.read_bytes()).digest())
        else:
            digest.update(b"folder\0")
    return digest.hexdigest()


def walk(folder: Path) -> list[Path]:
    """List everything under a folder but what tools write."""
    found = []
    for path in folder.iterdir():
        if path.name in IGNORED or path.suffix == ".egg-info":
            continue
        found.append(path)
        if path.is_dir() and not path.is_symlink():
            found += walk(path)
    return found


def copy(folder: Path, target: Path) -> Path:
    """Copy the app's folder, so that nothing that it writes beside itself reaches the original."""

    def place(source: str, destination: str) -> None:
        if os.path.getsize(source) > LARGE:
            os.symlink(source, destination)
        else:
            shutil.copy2(source, destination)

    shutil.copytree(
        folder, target, copy_function=place, ignore=shutil.ignore_patterns(*IGNORED, "*.egg-info")
    )
    return target
