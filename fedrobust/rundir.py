"""A run's folder, written as the run goes: config.toml, environment.json, rounds.jsonl."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedrobust.config import Experiment, slug

PACKAGES = ("flwr", "numba", "numpy", "ray", "scipy", "torch", "torchvision")


class FolderError(ValueError):
    """A run folder that another process holds, or that belongs to another experiment."""


class RunFolder:
    """The folder of one experiment inside ``parent``; its name ends with the run id."""

    def __init__(self, parent: str | Path, experiment: Experiment) -> None:
        self.path = Path(parent) / f"{slug(experiment.name)}-{experiment.run_id}"
        self._experiment = experiment

    @property
    def finished(self) -> bool:
        """Whether the last round is on disk."""
        rows = self.rows()
        return bool(rows) and rows[-1]["round"] == self._experiment.rounds

    def rows(self) -> list[dict[str, Any]]:
        """Return the rounds written so far; a line cut off by a kill is left out."""
        return read_rows(self.path / "rounds.jsonl")

    @contextmanager
    def recording(self) -> Iterator[RunFolder]:
        """Hold the folder alone, start its files anew, and append rows inside the block."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderError(f"another process is writing {str(self.path)!r}") from error
            _replace(self.path / "config.toml", self._experiment.to_toml())
            _replace(self.path / "environment.json", json.dumps(environment(), indent=2))
            (self.path / "rounds.jsonl").write_text("")
            yield self

    def append(self, row: dict[str, Any]) -> None:
        """Append one round, on disk before the next one starts."""
        with (self.path / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a rounds.jsonl; stop at the first line that is not whole."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def environment() -> dict[str, Any]:
    """Return what the numbers may depend on: versions, commit, processor, threads."""
    return {
        "fedrobust": importlib.metadata.version("fedrobust"),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parents[1]
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
