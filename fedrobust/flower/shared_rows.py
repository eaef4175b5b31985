"""The updates of a round in a file that all processes of one simulation on one machine map.

The server makes the file, in a folder of its run's own, and names it in what it sends to a host. A
host that was started with the same folder writes its clients' updates there, and answers with the
numbers of the rows in the place of their bytes. Whoever was started without the folder (a real
node, a worker on another machine) opens nothing, and answers with bytes.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from logging import INFO
from pathlib import Path
from typing import Any

import torch
from flwr.common import log
from torch import Tensor

from fedrobust.flower.rows_folder import hold, is_private

FOLDER = "FEDROBUST_ROWS"  # the folder of the files; unset: no rows are shared
NONCE = 16  # random bytes behind the rows: only who was told the file knows them
NAME = re.compile(r"[0-9a-f]{32}")
ITEM = 4  # bytes of a float32
SAMPLES = 64  # numbers of a row that its mark is made of


class HandleError(ValueError):
    """A handle that does not lead to rows of this simulation."""


@dataclass(frozen=True)
class Handle:
    """What a host is told of the server's file.

    Attributes
    ----------
    name
        Of the file, in the folder that both were started with.
    rows, d
        Shape of the matrix, float32.
    nonce
        The bytes behind the rows, in hexadecimal digits.
    """

    name: str
    rows: int
    d: int
    nonce: str

    def settings(self, slots: Sequence[int]) -> dict[str, Any]:
        """Return it as settings of a message, with the rows that the receiver is to write."""
        return {**asdict(self), "slots": list(slots)}

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.rows * self.d * ITEM + NONCE


def handle_of(settings: Mapping[str, Any]) -> Handle:
    """Read a handle, trusting none of its claims.

    Raises
    ------
    HandleError
        If it is none.
    """
    name, nonce = settings.get("name"), settings.get("nonce")
    rows, d = settings.get("rows"), settings.get("d")
    if not all(isinstance(one, str) and NAME.fullmatch(one) for one in (name, nonce)):
        raise HandleError("the name or nonce of shared rows is not 32 hexadecimal digits")
    if not all(type(one) is int and one > 0 for one in (rows, d)):
        raise HandleError(f"shared rows of shape {rows!r:.20} x {d!r:.20}")
    return Handle(str(name), int(rows), int(d), str(nonce))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Dealt:
    """The shared rows that a host was told to write: client -> row of (places, d)."""

    handle: Handle
    rows: Tensor
    slots: Mapping[int, int]

    def row(self, client: int) -> Tensor:
        """Return a client's row, (d,), to be written."""
        return self.rows[self.slots[client]]


class RowsFile:
    """Makes the memory of the server's matrix: a new file each time it is called.

    Parameters
    ----------
    folder
        This user's alone.

    Attributes
    ----------
    handle
        Of the file; None where there is none, or none any more.

    Raises
    ------
    HandleError
        If the folder is open to others.
    """

    def __init__(self, folder: Path) -> None:
        check_private(folder)
        # For this process's life: where the one that made the folder is killed, the run goes on.
        hold(folder)
        self._folder = folder
        self.handle: Handle | None = None

    def __call__(self, places: int, like: Tensor) -> Tensor:
        """Return rows (places, d) for vectors like one (d,).

        They are in a file where that is float32 in this processor's memory and there is room.
        """
        self.release()
        plain = like.dtype == torch.float32 and like.device.type == "cpu"
        if plain and places and like.numel():
            name, nonce = secrets.token_hex(NONCE), secrets.token_hex(NONCE)
            handle = Handle(name, places, like.numel(), nonce)
            try:
                rows = _made(self._folder / name, handle)
            except OSError as error:
                log(INFO, "updates travel as bytes, there is no room to share them: %s", error)
            else:
                self.handle = handle
                return rows
        return like.new_empty(places, like.numel())

    def release(self) -> None:
        """Let nobody open the file any more; who has it mapped keeps the memory."""
        if self.handle is not None:
            (self._folder / self.handle.name).unlink(missing_ok=True)
            self.handle = None


def dealt(settings: Mapping[str, Any], clients: Sequence[int]) -> Dealt | None:
    """Return the rows that a host is told to write; None in a process without a folder.

    Raises
    ------
    HandleError
        If the folder or the file is open to others, or the file is not the one that was meant, or
        the rows are not one of it for each client.
    """
    folder = os.environ.get(FOLDER, "")
    if not folder:
        return None
    handle, slots = handle_of(settings), list(settings.get("slots") or ())
    if len(slots) != len(clients) or len(set(slots)) != len(slots):
        raise HandleError("shared rows are not one for each client")
    if not all(type(slot) is int and 0 <= slot < handle.rows for slot in slots):
        raise HandleError(f"a shared row outside 0..{handle.rows - 1}")
    return Dealt(handle, _opened(folder, handle), dict(zip(clients, slots, strict=True)))


def mark(row: Tensor) -> int:
    """Return a number by which a row (d,) is known: the checksum of a sample of its numbers.

    It tells a row that was not written, or another one, from what a host meant. All who write are
    processes of the simulation itself: it is no signature.
    """
    step = max(1, row.numel() // SAMPLES)
    return zlib.crc32(row[::step].numpy().tobytes())


def check_private(folder: Path) -> None:
    """Check that a folder is this user's, and closed to all others.

    Raises
    ------
    HandleError
        If it is not.
    """
    if not is_private(folder):
        raise HandleError(f"{folder} is no folder of this user's alone")


def _made(path: Path, handle: Handle) -> Tensor:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        # All of it now: where memory runs out later, whoever writes is killed by the system.
        os.posix_fallocate(file, 0, handle.size)
        mapped = mmap.mmap(file, handle.size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    mapped[-NONCE:] = bytes.fromhex(handle.nonce)
    return _matrix(mapped, handle)


@lru_cache(maxsize=2)  # a host is sent the same handle each round
def _opened(folder: str, handle: Handle) -> Tensor:
    check_private(Path(folder))
    try:
        file = os.open(Path(folder) / handle.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HandleError(f"shared rows cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(file)
        regular = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
        if not regular or found.st_mode & 0o077 or found.st_size != handle.size:
            raise HandleError("the file of shared rows is not what the server made")
        mapped = mmap.mmap(file, handle.size)
    finally:
        os.close(file)
    if not secrets.compare_digest(mapped[-NONCE:], bytes.fromhex(handle.nonce)):
        raise HandleError("the file of shared rows belongs to another handle")
    return _matrix(mapped, handle)


def _matrix(mapped: mmap.mmap, handle: Handle) -> Tensor:
    count = handle.rows * handle.d
    return torch.frombuffer(mapped, dtype=torch.float32, count=count).view(handle.rows, handle.d)
