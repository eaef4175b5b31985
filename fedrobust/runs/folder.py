"""A run's folder, written as it goes: config.toml, environment.json, rounds.jsonl, checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedrobust import secret
from fedrobust.experiment.schema import Experiment
from fedrobust.runs import checkpoint
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.environment import environment
from fedrobust.runs.rows import FolderError, read_rows
from fedrobust.text import printable, slug

CHECKPOINT = "checkpoint.npz"
ROWS = "rounds.jsonl"
FILES = (ROWS, CHECKPOINT, "config.toml", "environment.json", secret.FILE)
CLOCK = ("seconds", "times")  # beginnings of the keys of a row that hold durations
PREVIOUS = ".previous"  # where the files of the run before this one are


class WriteError(FolderError):
    """A disk that takes no more; what was written before is whole."""

    exit_code = 1


class RunFolder:
    """The folder of one experiment inside ``parent``; its name ends with the run id."""

    def __init__(self, parent: str | Path, experiment: Experiment) -> None:
        self.path = Path(parent) / f"{slug(experiment.name)}-{experiment.run_id}"
        self._experiment = experiment
        self.saved: dict[str, Any] | None = None
        self._moved: list[str] = []

    @property
    def finished(self) -> bool:
        """Whether the last round is on disk."""
        return self.ends(self.rows())

    def ends(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether rows of this run reach its last round."""
        return bool(rows) and rows[-1].get("round") == self._experiment.rounds

    def rows(self) -> list[dict[str, Any]]:
        """Return the rounds written so far; a line cut off by a kill is left out."""
        return read_rows(self.path / ROWS)

    @contextmanager
    def recording(
        self, *, resume: bool = False, own: Mapping[str, str] | None = None
    ) -> Iterator[RunFolder]:
        """Hold the folder alone and append rows inside the block.

        Parameters
        ----------
        resume
            Keep what the last checkpoint stands for (``saved``) and drop the rows after it;
            without it, or where there is no checkpoint, the files start anew.
        own
            Plug-ins of others that the run uses, each with what tells it from another one: a run
            that continues must have the same.

        Raises
        ------
        FolderError
            If another process holds the folder, or a file in it is damaged.
        WriteError
            If the disk is full, or may not be written to.
        CheckpointError
            If the checkpoint is damaged, or the rows before it are not all there; or if a plug-in
            is not the one that the run began with.

        Notes
        -----
        Files of an earlier run move into ``PREVIOUS``. They come back if the block ends by an
        error before it has written a row: a run that could not begin erases nothing.
        """
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                # The lock goes with the open file: one that a killed process held is free again.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderError(f"another process is writing {str(self.path)!r}") from error
            tree = self._checkpoint() if resume else None
            if tree is not None:
                self._check_own(own or {})
            if tree is None:
                with _told(self.path):
                    self._set_aside()
            try:
                with _told(self.path):
                    self._start(tree, own or {})
                yield self
            except BaseException:  # Ctrl+C, too, ends a run that has written nothing
                if tree is None and not self.rows():
                    self._put_back()
                raise

    def save(self, tree: dict[str, Any]) -> None:
        """Write the checkpoint of the rows so far, after making those durable."""
        with _told(self.path):
            _sync(self.path / ROWS)
            checkpoint.save(self.path / CHECKPOINT, {"run": self._experiment.run_id, **tree})

    def _checkpoint(self) -> dict[str, Any] | None:
        """Return a checkpoint of this run whose rows are all there; None where there is none."""
        tree = checkpoint.load(self.path / CHECKPOINT)
        if tree is None:
            return None
        if not isinstance(tree, dict) or not isinstance(tree.get("round"), int):
            raise CheckpointError(f"the checkpoint in {str(self.path)!r} is damaged: no round")
        if tree.get("run") != self._experiment.run_id:
            raise CheckpointError(f"the checkpoint in {str(self.path)!r} is of another run")
        if [row.get("round") for row in self._rows_of(tree)] != list(_rounds_of(tree)):
            raise CheckpointError(
                f"the checkpoint in {str(self.path)!r} is of round {tree['round']}, but not all "
                "rows up to it are there: run again without --resume"
            )
        return tree

    def _rows_of(self, tree: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows that a checkpoint stands for."""
        return self.rows()[: len(_rounds_of(tree))]

    @property
    def own(self) -> dict[str, str]:
        """The plug-ins of others that the run in the folder used."""
        found = _table(self.path / "environment.json").get("own", {})
        return found if isinstance(found, dict) else {}

    def _check_own(self, own: Mapping[str, str]) -> None:
        """Refuse to continue a run with other plug-ins than it began with."""
        before = self.own
        for part in sorted({*before, *own}):
            if before.get(part) != own.get(part):
                raise CheckpointError(
                    f"the run in {str(self.path)!r} began with {part} from"
                    f" {before.get(part, 'nowhere')}, here it is from {own.get(part, 'nowhere')}:"
                    " run again without --resume"
                )

    def _start(self, tree: dict[str, Any] | None, own: Mapping[str, str]) -> None:
        """Write the files as they are before the next round."""
        self.saved = tree
        told: dict[str, Any] = environment() | ({"own": dict(own)} if own else {})
        rows = []
        if tree is not None:
            rows = self._rows_of(tree)
            first = _table(self.path / "environment.json")
            before = first.get("resumed")
            resumed = [
                *(before if isinstance(before, list) else []),
                {"after": tree["round"], **told},
            ]
            told = first | {"resumed": resumed}
        _replace(self.path / "config.toml", self._experiment.to_toml())
        _replace(self.path / "environment.json", json.dumps(told, indent=2))
        # Rows after the checkpoint go: their rounds are computed again.
        _replace(self.path / ROWS, "".join(json.dumps(row) + "\n" for row in rows))

    def _set_aside(self) -> None:
        """Move the files of an earlier run away; those of the run before it go."""
        there = [name for name in FILES if (self.path / name).exists()]
        self._moved = []
        if CHECKPOINT not in there and not self.rows():
            return  # nothing that anybody could miss: what is aside already stays
        (self.path / PREVIOUS).mkdir(exist_ok=True)
        for name in FILES:
            self._aside(name).unlink(missing_ok=True)
        for name in there:
            os.replace(self.path / name, self._aside(name))
            self._moved.append(name)

    def _put_back(self) -> None:
        """Undo ``_set_aside``, as far as the disk allows: a file is in one place or the other."""
        for name in self._moved:
            with suppress(OSError):
                os.replace(self._aside(name), self.path / name)

    def _aside(self, name: str) -> Path:
        """Return where an old file goes; no search for run folders finds it under that name."""
        return self.path / PREVIOUS / f"{name}.old"

    def append(self, row: dict[str, Any]) -> None:
        """Append one round, on disk before the next one starts."""
        with _told(self.path), (self.path / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")
            # To the system: a killed process loses no row. ``save`` puts rows on disk before a
            # checkpoint.
            file.flush()


def _rounds_of(tree: dict[str, Any]) -> range:
    """Return the rounds that a checkpoint stands for; an ensemble has no round 0."""
    return range(tree.get("first", 0), tree["round"] + 1)


def timeless(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop what the clock decides: what is left is the same wherever a run is repeated."""
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows]


def _table(path: Path) -> dict[str, Any]:
    """Read a JSON table; an empty one where there is no file."""
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise FolderError(
            f"{str(path)!r} is damaged ({printable(error, limit=100)}): delete it to go on, or run "
            "again without --resume"
        ) from error
    if not isinstance(found, dict):
        raise FolderError(f"{str(path)!r} is damaged: delete it to go on")
    return found


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
