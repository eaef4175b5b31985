"""Timing beside a reference, and how far the memory rises."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]
Row = dict[str, Any]


def show(rows: Iterable[Row], text: Callable[[Row], str], *, as_json: bool) -> None:
    """Print each row when it comes: one JSON object a line, or a text for people."""
    for row in rows:
        print(json.dumps(row) if as_json else text(row), flush=True)


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment of a process that runs another checkout's code, on one thread."""
    one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return {**os.environ, **one, "PYTHONPATH": str(tree)}


def seconds_of(
    call: Call, *, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time one call, the device's queue included.

    ``time.process_time`` as the clock counts the process's own seconds, whoever else computes.
    """
    begin = clock()
    call()
    settle(device)
    return clock() - begin


def settle(device: str) -> None:
    """Wait until a GPU has done what it was given: its time would be the next call's."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_of(call: Call, *, times: int = 7) -> float:
    """Return the median time of several calls, after one to warm up."""
    call()
    return statistics.median(seconds_of(call) for _ in range(times))


def side_by_side(
    call: Call,
    reference: Call,
    *,
    times: int = 7,
    limit: float = 20.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Return the medians of a call and of its reference, taken in turns after one to warm up.

    Parameters
    ----------
    limit
        Seconds after which no further turn is started; two are taken at least.
    clock
        See ``seconds_of``.
    """
    seconds_of(call, device=device)
    seconds_of(reference, device=device)
    ours: list[float] = []
    theirs: list[float] = []
    while len(ours) < 2 or (len(ours) < times and sum(ours) + sum(theirs) < limit):
        ours.append(seconds_of(call, device=device, clock=clock))
        theirs.append(seconds_of(reference, device=device, clock=clock))
    return statistics.median(ours), statistics.median(theirs)


def peak_of(call: Call, *, device: str = "cpu") -> int | None:
    """Return how far the memory in use rises during a call; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier case freed must not hide this one's need
        # 5 sets the peak, VmHWM, back to what is in use now (Linux, proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return None
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
