"""Each worker process on cores of its own: threads that wander between cores lose their caches."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import IO

VARIABLE = "FEDROBUST_CORES"  # cores a worker; unset or 0: pin nothing


def pin_from_environment() -> tuple[int, ...]:
    """Pin this process once, to as many free cores as ``FEDROBUST_CORES`` says; return them."""
    count = os.environ.get(VARIABLE, "")
    return pin(int(count)) if count.isdigit() and int(count) else ()


@lru_cache(maxsize=1)
def pin(count: int) -> tuple[int, ...]:
    """Pin this process to ``count`` cores that no other worker of this user has claimed.

    The claim is a locked file a core; the system drops it when the process ends, however it ends.
    Where there are fewer free cores nothing is pinned, nor where the system cannot, nor where
    somebody else has made the folder of the locks.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    if (folder := _own_folder()) is None:
        return ()
    claimed: dict[int, IO[str]] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if len(claimed) < count and (file := _lock(folder / str(core))) is not None:
            claimed[core] = file
    if len(claimed) < count:
        for file in claimed.values():
            file.close()
        return ()
    os.sched_setaffinity(0, claimed)
    _hold(tuple(claimed.values()))
    return tuple(claimed)


def _own_folder() -> Path | None:
    """Return the folder of this user's locks; None where it is not this user's alone.

    Its name can be foreseen: in it another user could hold the locks, or lay links to our files.
    """
    folder = Path(tempfile.gettempdir()) / f"fedrobust-cores-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if ours and not found.st_mode & 0o077 else None


@cache
def _hold(files: tuple[IO[str], ...]) -> tuple[IO[str], ...]:
    """Keep the locked files open until the process ends."""
    return files


def _lock(path: Path) -> IO[str] | None:
    try:
        # Neither through a link nor cut to nothing: only the lock counts.
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    file = os.fdopen(opened, "r+")
    try:
        # Not waited for: a core that another worker has is passed over.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
