"""The folder in memory that one run's processes share, and the end of those that were left behind.

Whoever needs a folder holds a shared lock on it, which the system drops with the process, however
that ends. A folder that nobody holds belonged to a run that was killed: the next run removes it.
A lock and no process number: numbers are given out again, and containers that share this memory
each count their own.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")  # a folder whose files are memory; where there is none nothing is shared
PREFIX = "fedrobust-held-"  # of folders that are held: of others it could not be told


@contextmanager
def own_folder() -> Iterator[str]:
    """Make a folder in memory for one run and remove it at the end; "" where there is none."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK) or not hasattr(os, "posix_fallocate"):
        yield ""
        return
    sweep()
    folder, lock = _made()
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep() -> list[str]:
    """Remove this user's folders that no process holds any more; return their names."""
    gone = []
    for folder in sorted(MEMORY.glob(f"{PREFIX}*")):
        if is_private(folder) and (lock := hold(folder, alone=True)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            gone.append(folder.name)
    return gone


def hold(folder: Path, *, alone: bool = False) -> int | None:
    """Hold a folder until the number that is returned is closed, or this process ends.

    Parameters
    ----------
    alone
        Only if nobody else holds it; None if somebody does, or if it is gone.
    """
    import fcntl  # there is none on Windows, and no folder in memory

    how = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, how)
        # Another run may have swept it away between its making and this lock.
        if os.path.samestat(os.fstat(lock), folder.lstat()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def is_private(folder: Path) -> bool:
    """Return whether it is a folder of this user's, and closed to all others."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return ours and not found.st_mode & 0o077


def _made() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY))  # mode 0700
        if (lock := hold(folder)) is not None:
            return folder, lock
