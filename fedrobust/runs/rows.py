"""A rounds.jsonl as others read it: at once, or as it grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from fedrobust.spec import InputError
from fedrobust.text import printables

Row = dict[str, Any]


class FolderError(InputError):
    """A run folder that another process holds, or that belongs to another experiment."""


def read_rows(path: Path) -> list[Row]:
    """Read a rounds.jsonl; stop at the first line that is no whole row, or at damaged bytes."""
    if not path.is_file():
        return []
    try:
        return _parsed(path.read_bytes())[0]
    except OSError as error:
        raise _unreadable(path, error) from error


class GrowingRows:
    """The rows of a rounds.jsonl that another process writes: each is read and parsed once.

    A file that was put in the place of the old one, or that became shorter, is read anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._offset = 0
        self._rows: list[Row] = []

    def look(self) -> list[Row]:
        """Return all rows by now; a line that is not whole yet is left for the next look."""
        try:
            with self._path.open("rb") as file:
                self._read(file)
        except FileNotFoundError:
            self._file, self._offset, self._rows = None, 0, []
        except OSError as error:
            raise _unreadable(self._path, error) from error
        return list(self._rows)

    def _read(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        which = found.st_dev, found.st_ino
        if which != self._file or found.st_size < self._offset:
            self._file, self._offset, self._rows = which, 0, []
        if found.st_size > self._offset:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
            rows, read = _parsed(whole + end)
            self._rows += rows
            self._offset += read


def _unreadable(path: Path, error: OSError) -> FolderError:
    return FolderError(f"cannot read {str(path)!r}: {error.strerror}")


def _parsed(data: bytes) -> tuple[list[Row], int]:
    """Return the rows up to the first line that is none, and how many bytes they take."""
    rows: list[Row] = []
    read = 0
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line.decode(errors="replace"))
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(printables(row))
        read += len(line)
    return rows, read
