"""Runs over the processes of this machine: one that fails, or dies, costs no other one."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from experiments.failed_runs import Died, Failures, Listener
from fedrobust import plugins
from fedrobust.experiment.schema import Experiment

Row = dict[str, Any]


class Sweep(Protocol):
    """What a process needs of a sweep: files of the user's, and how a run is run."""

    @property
    def use(self) -> str:
        """Files of the user's, joined as in PATH."""

    def on_device(self, device: str) -> Sweep:
        """Return the same sweep on one device."""

    def run_here(self, experiment: Experiment, on_row: Callable[[Row], None]) -> None:
        """Run one experiment in this process."""


Tasks = Mapping[int, tuple[Sweep, Experiment]]


def spread(
    tasks: Sequence[tuple[Sweep, Experiment]],
    workers: int,
    listener: Listener,
    *,
    devices: Sequence[str],
) -> Failures:
    """Run each task in one of some processes; return what failed.

    Each run takes the device that has been free for longest, so that slow runs do not pile up on
    one; with more processes than devices several share one.

    A process that is killed (the memory's end) takes the whole pool along, and nobody knows whose
    run it was: those that it cut off are begun again, each in a pool of its own. One that dies
    there, too, has failed.
    """
    failures, left = Failures(), dict(enumerate(tasks))
    while left:
        cut, untouched = _round(left, workers, listener, failures, devices)
        for index in cut:
            again, never_begun = _round({index: left[index]}, 1, listener, failures, devices)
            if again or never_begun:
                failures.add(left[index][1], Died("its process was killed twice: out of memory?"))
        if len(untouched) == len(left):
            raise BrokenProcessPool("processes die before they begin a run")
        left = {index: left[index] for index in untouched}
    return failures


def _round(
    tasks: Tasks, workers: int, listener: Listener, failures: Failures, devices: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Run tasks until all are done, or a process dies; return who was cut off, who never began."""
    # No fork: it copies locks that torch's threads hold at the time, and CUDA does not survive
    # it.
    context = get_context("spawn")
    begun: set[int] = set()
    with context.Manager() as manager, one_thread_per_process():
        # The manager's: a plain queue cannot be handed to a pool that is running.
        rows, free = manager.Queue(), manager.Queue()
        for i in range(max(workers, len(devices))):
            free.put(devices[i % len(devices)])
        with (
            ProcessPoolExecutor(workers, context, initializer=_pin) as pool,
            # The children so far, the manager among them, have to outlive the pool.
            _ended_by_interrupt(pool, spared=active_children()),
        ):
            futures = {i: pool.submit(_work, *task, i, rows, free) for i, task in tasks.items()}
            # A task may be done while its last rows are still in the queue.
            while not all(future.done() for future in futures.values()) or not rows.empty():
                try:
                    index, row = rows.get(timeout=0.2)
                except queue.Empty:
                    continue
                if row is None:
                    begun.add(index)
                else:
                    listener(tasks[index][1], row)
    broken = _broken(tasks, futures, failures)
    return [i for i in broken if i in begun], [i for i in broken if i not in begun]


def _broken(tasks: Tasks, futures: Mapping[int, Future], failures: Failures) -> list[int]:
    """Return whom the end of a process kept from ending; remember what failed by itself."""
    broken = []
    for index, future in futures.items():
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            broken.append(index)
        elif isinstance(error, Exception):
            failures.add(tasks[index][1], error)
        elif error is not None:
            raise error
    return broken


def _work(sweep: Sweep, experiment: Experiment, index: int, rows: Any, free: Any) -> None:
    rows.put((index, None))  # it has begun
    plugins.at_hand(sweep.use)
    plugins.provide(experiment.to_dict())
    device = free.get()
    try:
        sweep.on_device(device).run_here(experiment, lambda row: rows.put((index, row)))
    finally:
        free.put(device)


def _pin() -> None:
    torch.set_num_threads(1)


@contextmanager
def one_thread_per_process() -> Iterator[None]:
    """Give child processes one BLAS, OpenMP and numba thread each."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    # Before children start: each library reads its variable once, when it is loaded.
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextmanager
def _ended_by_interrupt(
    pool: ProcessPoolExecutor, *, spared: Sequence[BaseProcess]
) -> Iterator[None]:
    """End a pool's workers when the user interrupts, instead of waiting for their runs.

    Whoever hears the rows and fails ends what has not begun; what runs is waited for.
    """
    try:
        yield
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            if child not in spared:
                child.terminate()
        raise
    except Exception:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
