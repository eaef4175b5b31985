"""What runs inside a Ray actor and computes whole runs of a sweep, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from experiments.cluster.worker import Here, naming_the_machine, prepared
from experiments.simulation import carried
from fedrobust import plugins
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import tensor_of
from strategies.checkpointing import Checkpoints

ROW, CHECKPOINT, MODEL = "row", "checkpoint", "model"
News = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Use:
    """What every run of a sweep has in common.

    Attributes
    ----------
    data_root
        Where the data sets are, on every machine.
    device
        "cpu" or "cuda": Ray shows each worker its own GPU.
    files
        Files with plug-ins of the user's, at the same place on every machine.
    output
        Where runs keep images of attacks and what tuning found, on the machine that made them.
    secret
        A server's, whose draws are repeated.
    models
        Whether final models are sent, too.
    """

    data_root: str | None
    device: str
    files: str
    output: Path
    secret: int | None
    models: bool


class Runner:
    """Computes runs and tells what a run's folder holds, as it comes.

    Nothing is written where it runs: the folder is with whoever asked.
    """

    def set_up(self, use: Use) -> Here:
        """Load what the runs have in common."""
        self._use = use
        with naming_the_machine():
            return prepared(use.files)

    def run(self, experiment: Experiment, saved: dict[str, Any] | None) -> Iterator[News]:
        """Compute one run, from a checkpoint if there is one, and yield its news in order."""
        news: SimpleQueue[News | Exception | None] = SimpleQueue()

        def work() -> None:
            try:
                with naming_the_machine():
                    self._compute(experiment, saved, news.put)
                news.put(None)
            except Exception as error:  # raised again where the news are read
                news.put(error)

        # A thread: a run calls back, and what Ray streams is a generator.
        Thread(target=work, daemon=True).start()
        while (item := news.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _compute(
        self, experiment: Experiment, saved: dict[str, Any] | None, tell: Callable[[News], None]
    ) -> None:
        use = self._use
        plugins.provide(experiment.to_dict())
        final = carried(
            experiment,
            grid="in_process",
            kept=use.output,
            data_root=use.data_root,
            device=use.device,
            on_row=lambda row: tell((ROW, row)),
            checkpoints=Checkpoints(lambda tree: tell((CHECKPOINT, tree)), saved),
            secret=use.secret,
        )
        if use.models:
            running = final.get("statistics")
            statistics = None if running is None else tensor_of(running).clone()
            tell((MODEL, (tensor_of(final["model"]).clone(), statistics)))
