"""Thread counts belong to the user: one thread for what a run computes, the rest left as it was.

A sum of floats depends on how many threads share it, so a run computes on one thread, whatever the
process did before. Compiled kernels give equal bits on any number of threads; how many they use
follows from the user's limits, and they start none that outlives the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import numba
import torch

LEAST_WORK = 2**18  # values a thread: with fewer, starting it (0.1 ms) costs more than it saves
# What torch's limit was outside of ``one_thread``: compiled kernels may still use it inside.
_outside: ContextVar[int | None] = ContextVar("torch's threads outside of one_thread", default=None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread inside: the sums of a gradient depend on the number of threads.

    Compiled kernels are not concerned: their bits do not depend on it, see ``kernel_threads``.
    """
    before = torch.get_num_threads()
    token = _outside.set(before) if _outside.get() is None else None
    # Set even where torch says 1 already: its BLAS may have been left with another limit.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
        if token is not None:
            _outside.reset(token)


def kernel_threads() -> int:
    """Return how many threads a compiled kernel may use: the least of the user's limits.

    The limits are ``torch.get_num_threads()`` (inside of ``one_thread``, what it was outside),
    ``OMP_NUM_THREADS`` and ``NUMBA_NUM_THREADS`` (by default the number of cores).
    """
    own: Any = numba.config  # its names are made at import, which no type checker sees
    limits = [_outside.get() or torch.get_num_threads(), own.NUMBA_NUM_THREADS]
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if outermost.isdigit():
        limits.append(int(outermost))
    return max(1, min(limits))


def in_parts(kernel: Callable[..., None], *arguments: Any, parts: int, work: int) -> None:
    """Call ``kernel(*arguments, first, last)`` so that all parts 0..parts-1 are done once.

    Parameters
    ----------
    kernel
        Compiled with ``nogil``; writes results of different parts to different places, so that the
        bits do not depend on how the parts are shared out.
    work
        Values that all parts read together.

    Notes
    -----
    These are plain threads, not numba's ``prange``: the first ``prange`` of a process sets OpenMP's
    number of threads, which is torch's too, for the rest of the process, and ends a child that was
    forked after it.
    """
    count = max(1, min(kernel_threads(), parts, work // LEAST_WORK))
    # The calling thread takes the first part itself, instead of waiting.
    own, *others = pairwise(parts * i // count for i in range(count + 1))
    if not others:
        kernel(*arguments, *own)
        return
    with ThreadPoolExecutor(len(others)) as pool:
        waiting = [pool.submit(kernel, *arguments, *part) for part in others]
        kernel(*arguments, *own)
        for task in waiting:
            # Raises here what a thread raised.
            task.result()
