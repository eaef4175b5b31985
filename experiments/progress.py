"""Live progress of a sweep: bar, ETA, last accuracy; a line as each run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedrobust.experiment.schema import Experiment
from fedrobust.training.tasks import headline

Row = dict[str, Any]
OnRow = Callable[[Experiment, Row], None]


class Live:
    """Show the rounds of all runs as they come; nothing at all where ``quiet``.

    Without a terminal (CI, a pipe) there is no bar: a line as each run ends, and nothing else.

    Parameters
    ----------
    sent
        Show the bytes that travelled: between processes or machines, not inside one process.
    """

    def __init__(
        self,
        console: Console,
        experiments: list[Experiment],
        *,
        quiet: bool = False,
        sent: bool = False,
    ) -> None:
        self._console = Console(quiet=True) if quiet else console
        self._sent = sent
        self._bytes = 0
        self._runs = len(experiments)
        self._ended = 0
        self._told = False
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.fields[ended]}"),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[last]}", table_column=Column(no_wrap=True, ratio=1)),
            console=self._console,
            expand=True,
        )
        total = sum(e.rounds for e in experiments)
        self._task = self._bar.add_task("", total=total, last="", ended=self._done())

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
        self._bytes += sum(row.get(key) or 0 for key in ("bytes_up", "bytes_down"))
        if value := shown(experiment, row):
            # The number first: where the line is narrow, the end of the name is cut off.
            sent = f", {size(self._bytes)} sent" if self._sent and self._bytes else ""
            self._bar.update(self._task, last=f"{value}{sent} {experiment.name}")
            self._first(f"{experiment.name} {value}", row)
        if row["round"] > 0:
            self._bar.advance(self._task)
        if row["round"] == experiment.rounds:
            self._end(experiment, row)

    def _first(self, last: str, row: Row) -> None:
        # Not of round 0, which is the initial model in every run.
        if not self._told and row["round"] > 0:
            self._told = True
            self._line(f"first result: {last} after round {row['round']}")

    def _end(self, experiment: Experiment, row: Row) -> None:
        self._ended += 1
        self._bar.update(self._task, ended=self._done())
        self._line(f"{self._ended:>3}/{self._runs}  {experiment.name:<40} {shown(experiment, row)}")

    def _done(self) -> str:
        return f"{self._ended}/{self._runs} runs"

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"[dim]{seconds:6.1f} s[/]  {text}", highlight=False)


@contextmanager
def following(
    experiments: list[Experiment], on_row: OnRow, *, wanted: bool, sent: bool
) -> Iterator[OnRow]:
    """Show the progress of a simulation on a terminal or in a notebook, where it is wanted.

    Yields what to call with each row in the place of ``on_row``.
    """
    if not wanted:
        yield on_row
        return
    with Live(Console(), experiments, sent=sent) as live:

        def both(experiment: Experiment, row: Row) -> None:
            on_row(experiment, row)
            live.row(experiment, row)

        yield both


def shown(experiment: Experiment, row: Row) -> str:
    """Write what stands for a run in one row: ``85.8%``, or ``r2 0.42``; empty where it is not."""
    found = headline(experiment.metrics, row)
    if not isinstance(row.get(found.column), int | float):
        return ""
    value = row[found.column]
    written = f"{value:.1%}" if found.is_share else f"{value:.4g}"
    return written if found.column == "accuracy" else f"{found.column} {written}"


def size(count: float) -> str:
    """Write a number of bytes for people: ``3.1 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
