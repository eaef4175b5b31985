"""Live progress of a sweep: bar, ETA, last accuracy; a line as each run ends."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedrobust.config import Experiment

Row = dict[str, Any]


class Live:
    """Show the rounds of all runs as they come."""

    def __init__(self, console: Console, experiments: list[Experiment]) -> None:
        self._console = console
        self._runs = len(experiments)
        self._ended = 0
        self._told = False
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
            console=console,
        )
        total = sum(e.rounds for e in experiments)
        self._task = self._bar.add_task(f"{self._runs} run(s)", total=total, last="")

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def row(self, experiment: Experiment, row: Row) -> None:
        """Take one row of one run."""
        if "accuracy" in row:
            last = f"{experiment.name} {row['accuracy']:.1%}"
            self._bar.update(self._task, last=last)
            self._first(last, row)
        if row["round"] > 0:
            self._bar.advance(self._task)
        if row["round"] == experiment.rounds:
            self._end(experiment, row)

    def _first(self, last: str, row: Row) -> None:
        if not self._told and row["round"] > 0:
            self._told = True
            self._line(f"first accuracy: {last} after round {row['round']}")

    def _end(self, experiment: Experiment, row: Row) -> None:
        self._ended += 1
        self._line(f"{self._ended:>3}/{self._runs}  {experiment.name:<40} {row['accuracy']:.1%}")

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"[dim]{seconds:6.1f} s[/]  {text}", highlight=False)
