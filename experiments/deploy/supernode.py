"""A SuperNode that answers at once: ``python -m experiments.deploy.supernode ARGUMENTS``.

All arguments of ``flower-supernode`` pass through. Flower's own SuperNode looks for a message every
three seconds, and starts a Python process for each, which imports PyTorch. This one looks often
while there is work and seldom while there is none, and has its messages answered by forks of a warm
process (``experiments.deploy.executor``), which alone knows the secret with which tasks are taken.
``fedrobust node --plain`` is Flower's own way.
"""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiments.deploy import executor
from fedrobust.flower import _compat_processes as flower

HOST = "127.0.0.1"
LEAST = 0.2  # seconds between two looks for a message
SHARE = 0.1  # of the time since the last message: a look is late by a tenth of the waiting at most
BUSY = 0.02  # seconds between two looks for the answer, in this process's own memory
GONE = "the process that answers messages has ended: see what it said above"


@dataclass
class Pauses:
    """How long a node waits until it looks again.

    Parameters
    ----------
    longest
        Seconds between two looks for a message, at most.
    notify
        Tells the executor that there is a message.
    check
        Is called before each pause.
    """

    longest: float
    notify: Callable[[], None]
    check: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    _last: float = field(init=False)
    _answering: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Have a message answered."""
        self.notify()
        self._answering = True
        try:
            yield
        finally:
            self._answering, self._last = False, self.clock()

    def sleep(self, flowers: float) -> None:
        """Wait instead of the seconds that Flower would."""
        self.check()
        waited = SHARE * (self.clock() - self._last)
        self.wait(BUSY if self._answering else min(max(LEAST, waited), self.longest))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fork the executor, then become Flower's SuperNode."""
    given, rest = _parser().parse_known_args(arguments)
    secret = secrets.token_bytes(32)
    process, tell = start_executor(f"{HOST}:{given.port}", secret)

    def check() -> None:
        if os.waitpid(process, os.WNOHANG)[0]:
            flower.leave(GONE)

    own = ["--isolation", "process", "--superexec-auth-secret-file", f"/dev/fd/{readable(secret)}"]
    pauses = Pauses(given.poll, lambda: notify(tell), check)
    flower.run_supernode(
        [*rest, "--host", HOST, "--port", str(given.port), *own],
        sleep=pauses.sleep,
        answering=pauses.answering,
    )


def start_executor(address: str, secret: bytes) -> tuple[int, int]:
    """Fork the warm process, while this one has no threads; return its id, and where to tell it.

    It ends when this process does, because the other end of its pipe is gone then.
    """
    executor.preload()
    words, tell = os.pipe()
    if not (process := os.fork()):
        os.close(tell)
        executor.run(address, secret, words)
    os.close(words)
    return process, tell


def readable(secret: bytes) -> int:
    """Return a descriptor from which a secret can be read once, without a file on disk."""
    end, begin = os.pipe()
    os.write(begin, secret)
    os.close(begin)
    return end


def notify(tell: int) -> None:
    """Say that there is a message; of an executor that is gone, ``check`` tells."""
    try:
        os.write(tell, b"m")
    except BrokenPipeError:
        return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="supernode", description=__doc__, allow_abbrev=False, add_help=False
    )
    parser.add_argument("--poll", type=float, default=3.0, help="Seconds between looks, at most.")
    parser.add_argument("--port", type=int, default=9094, help="Local port of the runtime API.")
    return parser


if __name__ == "__main__":
    main()
