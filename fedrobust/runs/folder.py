"""A run's folder, written as it goes: config.toml, environment.json, rounds.jsonl, checkpoint."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedrobust.experiment.load import slug
from fedrobust.experiment.schema import Experiment
from fedrobust.runs import checkpoint
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.spec import InputError

CHECKPOINT = "checkpoint.npz"
PACKAGES = ("flwr", "numba", "numpy", "ray", "scipy", "torch", "torchvision")


class FolderError(InputError):
    """A run folder that another process holds, or that belongs to another experiment."""


class WriteError(FolderError):
    """A disk that takes no more; what was written before is whole."""

    exit_code = 1


class RunFolder:
    """The folder of one experiment inside ``parent``; its name ends with the run id."""

    def __init__(self, parent: str | Path, experiment: Experiment) -> None:
        self.path = Path(parent) / f"{slug(experiment.name)}-{experiment.run_id}"
        self._experiment = experiment
        self.saved: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the last round is on disk."""
        rows = self.rows()
        return bool(rows) and rows[-1]["round"] == self._experiment.rounds

    def rows(self) -> list[dict[str, Any]]:
        """Return the rounds written so far; a line cut off by a kill is left out."""
        return read_rows(self.path / "rounds.jsonl")

    @contextmanager
    def recording(self, *, resume: bool = False) -> Iterator[RunFolder]:
        """Hold the folder alone and append rows inside the block.

        Parameters
        ----------
        resume
            Keep what the last checkpoint stands for (``saved``) and drop the rows after it;
            without it, or where there is no checkpoint, the files start anew.

        Raises
        ------
        FolderError
            If another process holds the folder.
        CheckpointError
            If the checkpoint is damaged, or the rows before it are not all there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderError(f"another process is writing {str(self.path)!r}") from error
            self._start(self._checkpoint() if resume else None)
            yield self

    def save(self, tree: dict[str, Any]) -> None:
        """Write the checkpoint of the rows so far, after making those durable."""
        with _told(self.path):
            _sync(self.path / "rounds.jsonl")
            checkpoint.save(self.path / CHECKPOINT, {"run": self._experiment.run_id, **tree})

    def _checkpoint(self) -> dict[str, Any] | None:
        """Return a checkpoint of this run whose rows are all there; None where there is none."""
        tree = checkpoint.load(self.path / CHECKPOINT)
        if tree is None:
            return None
        if tree["run"] != self._experiment.run_id:
            raise CheckpointError(f"the checkpoint in {str(self.path)!r} is of another run")
        rows = self.rows()[: tree["round"] + 1]
        if [row["round"] for row in rows] != list(range(tree["round"] + 1)):
            raise CheckpointError(
                f"the checkpoint in {str(self.path)!r} is of round {tree['round']}, but not all "
                "rows up to it are there: run again without --resume"
            )
        return tree

    def _start(self, tree: dict[str, Any] | None) -> None:
        """Write the files as they are before the next round."""
        self.saved = tree
        told: dict[str, Any] = environment()
        rows = []
        if tree is None:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        else:
            rows = self.rows()[: tree["round"] + 1]
            first = json.loads((self.path / "environment.json").read_text())
            resumed = [*first.get("resumed", []), {"after": tree["round"], **told}]
            told = first | {"resumed": resumed}
        _replace(self.path / "config.toml", self._experiment.to_toml())
        _replace(self.path / "environment.json", json.dumps(told, indent=2))
        _replace(self.path / "rounds.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, row: dict[str, Any]) -> None:
        """Append one round, on disk before the next one starts."""
        with _told(self.path), (self.path / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()


def timeless(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop what depends on the machine: what is left is the same wherever a run is repeated."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


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
    _sync(temporary)
    os.replace(temporary, path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write into {str(path)!r}: {error.strerror}; what was written before is whole:"
            " make room, then run again with --resume"
        ) from error


def _sync(path: Path) -> None:
    """Put a file's bytes on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
