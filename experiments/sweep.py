"""Many runs at once: one process a core of one machine or many; finished runs are skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import export, run_processes
from experiments.failed_runs import FailedRunsError, Failures, Listener
from experiments.grids import Cluster
from experiments.simulation import check_features, run_one
from fedrobust import plugins
from fedrobust import secret as hidden
from fedrobust.experiment.honoured import MODEL as MODEL_KEPT
from fedrobust.experiment.honoured import RESUME
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder
from fedrobust.spec import suggest

Row = dict[str, Any]
MODEL = "model.safetensors"
PLACES = ["processes", "ray"]


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
    on
        "processes" of this machine, or "ray": the workers of a cluster, each with a run at a time.
    ray_address
        Which cluster, for ``on`` and for grid "ray"; see ``experiments.grids.Cluster``.

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
    on: str = "processes"
    ray_address: str = "local"

    def folders(self, *, but: FailedRunsError | None = None) -> list[Path]:
        """Return each run's folder, in order; not of those that failed."""
        failed = [] if but is None else but.experiments
        return [RunFolder(self.output, e).path for e in self.experiments if e not in failed]

    def run(self, on_row: Callable[[Experiment, Row], None]) -> None:
        """Run what is not finished; ``on_row`` is called in this process.

        One run that fails costs no other one.

        Raises
        ------
        ConfigError
            If a run's mode does not honour ``models`` or ``resume``; then nothing was run.
        FailedRunsError
            At the end, if several were to be run and some failed; a single run's own error.
        """
        self._check()
        waiting = self.waiting()
        failures = Failures() if not waiting else self._each(waiting, Listener(on_row))
        failures.settle(waiting)

    def _check(self) -> None:
        if self.fresh and self.resume:
            raise ConfigError(["--fresh starts every run anew, --resume continues: give one"])
        if self.on not in PLACES:
            raise ConfigError([f"unknown place {self.on!r} for runs; {suggest(self.on, PLACES)}"])
        if self.on == "ray" and self.grid != "in_process":
            raise ConfigError(
                [f"--on ray gives each worker whole runs, --grid {self.grid} shares one run out:"
                 " give one"]
            )  # fmt: skip
        wanted = {RESUME: self.resume, MODEL_KEPT: self.models}
        check_features(self.experiments, *(name for name, given in wanted.items() if given))

    def _each(self, waiting: list[Experiment], listener: Listener) -> Failures:
        if self.on == "ray":
            return self._on_ray(waiting, listener)
        usual = os.cpu_count() or 1 if self.device == "cpu" else len(self.devices())
        workers = min(self.workers or usual, len(waiting))
        if workers <= 1 or self.grid != "in_process":
            return self._in_turn(waiting, listener)
        tasks = [(replace(self, use=plugins.used()), e) for e in waiting]
        return run_processes.spread(tasks, workers, listener, devices=self.devices())

    def _in_turn(self, waiting: list[Experiment], listener: Listener) -> Failures:
        failures = Failures()
        for experiment in waiting:
            with failures.of(experiment, but=listener.raised):
                self.run_here(experiment, partial(listener, experiment))
        return failures

    def _on_ray(self, waiting: list[Experiment], listener: Listener) -> Failures:
        from experiments.cluster.runner import Use
        from experiments.cluster.runs import spread

        root = str(Path(self.data_root).absolute()) if self.data_root else None
        use = Use(
            data_root=root, device=self.device, files=plugins.used(),
            output=self.output.resolve(), secret=self.secret, models=self.models,
        )  # fmt: skip
        return spread(
            waiting, use, self._cluster, resume=self.resume, on_row=listener,
            on_model=self._write_model,
        )  # fmt: skip

    @property
    def _cluster(self) -> Cluster:
        return Cluster(address=self.ray_address, workers=self.workers)

    def waiting(self) -> list[Experiment]:
        """Return the runs that are not finished; with ``fresh`` all."""
        return [e for e in self.experiments if self.fresh or not self._done(e)]

    def run_here(self, experiment: Experiment, on_row: Callable[[Row], None]) -> None:
        """Run one experiment of the sweep in this process, into its folder."""
        run_one(
            experiment,
            grid=self.grid,
            hosts=self.hosts,
            device=self.device,
            data_root=self.data_root,
            folder=RunFolder(self.output, experiment),
            on_row=on_row,
            on_model=partial(self._write_model, experiment) if self.models else None,
            resume=self.resume,
            secret=self.secret,
            cluster=self._cluster,
        )

    def _write_model(
        self, experiment: Experiment, vector: Tensor, statistics: Tensor | None
    ) -> None:
        state = export.state_dict(
            experiment, vector, statistics=statistics, data_root=self.data_root
        )
        export.write(RunFolder(self.output, experiment).path / MODEL, experiment, state)

    def devices(self) -> list[str]:
        """Return the devices that runs take in turn."""
        if self.device != "cuda":
            return [self.device]
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]

    def on_device(self, device: str) -> Sweep:
        """Return the same sweep on one device."""
        return replace(self, device=device)

    def _done(self, experiment: Experiment) -> bool:
        folder = RunFolder(self.output, experiment)
        if self.secret is not None and hidden.held(folder.path) != self.secret:
            return False
        if not folder.finished or (self.models and not (folder.path / MODEL).is_file()):
            return False
        return folder.own == plugins.identities(experiment.to_dict(), root=self.data_root)
