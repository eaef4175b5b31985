"""Many runs at once: one process a core, finished runs skipped, rows reported as they come."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import export
from experiments.simulation import check_features, run_one
from fedrobust import plugins
from fedrobust import secret as hidden
from fedrobust.experiment.honoured import MODEL as MODEL_KEPT
from fedrobust.experiment.honoured import RESUME
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder

Row = dict[str, Any]
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Sweep:
    """What to run, and where it goes.

    Attributes
    ----------
    workers
        Processes; 0 means one a core, or one a GPU.
    device
        "cpu", "cuda:N", or "cuda": the runs take turns on all GPUs.
    models
        Write each run's final model beside its rows, as ``MODEL``.
    resume
        Continue unfinished runs from their last checkpoint instead of starting them anew.
    secret
        A server's, whose draws are to be repeated; a run that was made without it is not finished.
    use
        Files with plug-ins of the user's, for the processes: ``plugins.used``.
    fresh
        Run the finished ones too.
    hosts
        Host processes of each run on Flower's grid; 0: one a core, or one a GPU.

    A run that was made with another version of a plug-in is not finished either.
    """

    experiments: list[Experiment]
    output: Path
    grid: str = "in_process"
    data_root: str | None = None
    workers: int = 0
    models: bool = False
    resume: bool = False
    device: str = "cpu"
    secret: int | None = None
    use: str = ""
    fresh: bool = False
    hosts: int = 0

    def folders(self) -> list[Path]:
        """Return each run's folder, in order."""
        return [RunFolder(self.output, e).path for e in self.experiments]

    def run(self, on_row: Callable[[Experiment, Row], None]) -> None:
        """Run what is not finished; ``on_row`` is called in this process.

        Raises
        ------
        ConfigError
            If a run's mode does not honour ``models`` or ``resume``; then nothing was run.
        """
        if self.fresh and self.resume:
            raise ConfigError(["--fresh starts every run anew, --resume continues: give one"])
        wanted = {RESUME: self.resume, MODEL_KEPT: self.models}
        check_features(self.experiments, *(name for name, given in wanted.items() if given))
        waiting = self.waiting()
        usual = os.cpu_count() or 1 if self.device == "cpu" else len(self._by_gpu())
        workers = min(self.workers or usual, len(waiting))
        if workers <= 1 or self.grid != "in_process":
            for experiment in waiting:
                self._run_here(experiment, lambda row, e=experiment: on_row(e, row))  # type: ignore[misc]
        else:
            self._run_parallel(waiting, workers, on_row)

    def waiting(self) -> list[Experiment]:
        """Return the runs that are not finished; with ``fresh`` all."""
        return [e for e in self.experiments if self.fresh or not self._done(e)]

    def _run_here(self, experiment: Experiment, on_row: Callable[[Row], None]) -> None:
        folder = RunFolder(self.output, experiment)

        def write_model(vector: Tensor, statistics: Tensor | None) -> None:
            state = export.state_dict(
                experiment, vector, statistics=statistics, data_root=self.data_root
            )
            export.write(folder.path / MODEL, experiment, state)

        run_one(
            experiment,
            grid=self.grid,
            hosts=self.hosts,
            device=self.device,
            data_root=self.data_root,
            folder=folder,
            on_row=on_row,
            on_model=write_model if self.models else None,
            resume=self.resume,
            secret=self.secret,
        )

    def _by_gpu(self) -> list[Sweep]:
        """Return the same sweep on each of its GPUs."""
        if self.device != "cuda":
            return [self]
        return [replace(self, device=f"cuda:{i}") for i in range(torch.cuda.device_count())]

    def _done(self, experiment: Experiment) -> bool:
        folder = RunFolder(self.output, experiment)
        if self.secret is not None and hidden.held(folder.path) != self.secret:
            return False
        if not folder.finished or (self.models and not (folder.path / MODEL).is_file()):
            return False
        return folder.own == plugins.identities(experiment.to_dict(), root=self.data_root)

    def _run_parallel(
        self, waiting: list[Experiment], workers: int, on_row: Callable[[Experiment, Row], None]
    ) -> None:
        # No fork: it copies locks that torch's threads hold at the time, and CUDA does not survive
        # it.
        context = get_context("spawn")
        with context.Manager() as manager, one_thread_per_process():
            # The manager's: a plain queue cannot be handed to a pool that is running.
            rows = manager.Queue()
            with (
                ProcessPoolExecutor(workers, context, initializer=_pin) as pool,
                # The children so far, the manager among them, have to outlive the pool.
                _ended_by_interrupt(pool, spared=active_children()),
            ):
                each = [replace(one, use=plugins.used()) for one in self._by_gpu()]
                tasks = [
                    pool.submit(_work, each[i % len(each)], i, e, rows)
                    for i, e in enumerate(waiting)
                ]
                # A task may be done while its last rows are still in the queue.
                while not all(task.done() for task in tasks) or not rows.empty():
                    try:
                        index, row = rows.get(timeout=0.2)
                        on_row(waiting[index], row)
                    except queue.Empty:
                        _raise_first(tasks)
                _raise_first(tasks)


@contextmanager
def _ended_by_interrupt(
    pool: ProcessPoolExecutor, *, spared: Sequence[BaseProcess]
) -> Iterator[None]:
    """End a pool's workers when the user interrupts, instead of waiting for their runs."""
    try:
        yield
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            if child not in spared:
                child.terminate()
        raise


def _raise_first(tasks: list) -> None:
    """Raise a worker's error at once instead of after the whole sweep."""
    for task in tasks:
        if task.done() and (error := task.exception()):
            for other in tasks:
                other.cancel()
            raise error


def _work(sweep: Sweep, index: int, experiment: Experiment, rows: Any) -> None:
    plugins.at_hand(sweep.use)
    plugins.provide(experiment.to_dict())
    sweep._run_here(experiment, lambda row: rows.put((index, row)))


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
