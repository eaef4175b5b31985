"""The warm process of a node: it has everything imported, and forks a child for each message.

``experiments.deploy.supernode`` forks it before it has threads, and shares what is imported with
it. A byte on its descriptor says that there is a message, the descriptor's end that the node has
ended. A child is what Flower's own client process is: it takes one message, answers it, and ends.
What it allocates, breaks or remembers ends with it. The parent computes nothing, so that it has no
threads that a fork would lose.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import torch
from flwr.app import Message

from fedrobust.aggregation import aggregate
from fedrobust.flower import _compat_processes as flower

# The client app, and what it imports on its way through a message; optimizers import _dynamo.
PRELOADED = (
    "clients.client_app",
    "fedrobust.ensemble.attacker",
    "fedrobust.ensemble.image_store",
    "fedrobust.ensemble.measures",
    "fedrobust.flower.ensemble_replies",
    "fedrobust.flower.node_state",
    "flwr_datasets.partitioner",
    "torch._dynamo",
)
LOOK = 10.0  # seconds after which it asks without a word: a task that was lost is offered again
OWN = "clients"  # the app's package: each message brings the app that the server runs
FORKABLE = {"jemalloc_bg_thd"}  # of Arrow's allocator, which holds it still while a process forks
KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def run(address: str, secret: bytes, words: int) -> NoReturn:
    """Be the warm process until the node ends; never return into the node's code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the node itself ends on it, and this with it
    code = 1
    try:
        serve(address, words, flower.executor_client(address, secret))
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End a forked process without what its parent would do at its own end."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def preload() -> None:
    """Import what a child needs, but for the app itself; keep the collector off these pages."""
    for name in PRELOADED:
        importlib.import_module(name)
    aggregate(torch.eye(3), "median")  # numba reads its tables at the first call of a kernel
    flower.client_process()
    for name in [name for name in sys.modules if name.partition(".")[0] == OWN]:
        del sys.modules[name]
    without_threads()
    gc.collect()
    gc.freeze()


def without_threads() -> None:
    """Let go of the threads that OpenBLAS starts when NumPy and SciPy are imported.

    It ends them before a fork, by a handler of its own, and starts them when they are needed: a
    first fork, of a child that does nothing, leaves one thread.
    """
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)


def serve(address: str, words: int, client: Any) -> None:
    """Answer messages, one at a time, until the words end."""
    while True:
        # All bytes at once, below: one look takes every message that is waiting.
        heard, _, _ = select.select([words], [], [], LOOK)
        if heard and not os.read(words, 4096):
            return
        while token := offered(client):
            answer(address, token, words)


def offered(client: Any) -> str:
    """Return the token of a waiting message; empty where there is none."""
    try:
        return flower.next_task(client)
    except httpx.TransportError:  # the node is starting, or ending
        return ""


def answer(address: str, token: str, words: int) -> None:
    """Have one message answered by a child of its own; end it where the node ends before it."""
    if found := threads():
        raise RuntimeError(f"an import has started threads, which a fork would lose: {found}")
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        # Only the parent listens: its copy's end is how it learns that the node has ended.
        os.close(words)
        child(address, token, parent)
    ended = os.pidfd_open(pid)
    try:
        while ended not in (heard := select.select([ended, words], [], [])[0]):
            if heard and not os.read(words, 4096):
                os.kill(pid, signal.SIGKILL)
                raise SystemExit(0)
    finally:
        os.waitpid(pid, 0)
        os.close(ended)


def threads() -> list[str]:
    """Name the threads of this process beside its first, and beside those that outlive a fork."""
    tasks = sorted(int(task.name) for task in Path("/proc/self/task").iterdir())
    others = [task for task in tasks if task != os.getpid()]
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in others]
    return [name for name in names if name not in FORKABLE]


def child(address: str, token: str, parent: int) -> NoReturn:
    """Be the client's process for one message; never return into the parent's code."""
    code: Any = 1
    try:
        ctypes.CDLL(None).prctl(KILLED_WITH_PARENT, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        np.random.seed()  # noqa: NPY002  # a fork shares the parent's state; somebody's app may draw
        flower.run_task(address, token, parent, limit)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code if isinstance(code, int) else 1)


def limit(message: Message) -> None:
    """End this process when its message has expired: nobody would read the reply."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(message.metadata.ttl, 0.001))
