"""What a finished run or sweep leaves behind: tables on the terminal, files, JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from experiments import tables, worst_case
from experiments.labels import spelt
from experiments.results import Results
from experiments.worst_case import WorstCase
from fedrobust.experiment.schema import Experiment

MOST_COLUMNS = 9  # of attacks on a terminal


def show(results: Results, console: Console) -> None:
    """Print the worst cases, and the table of final values with intervals over the seeds."""
    found = results.worst_cases
    show_worst_cases(found, console)
    if found and len(results.table().columns) > MOST_COLUMNS:
        return  # every member has a column of its own: that table is in the files
    measure = results.headline
    table = tables.cells(results.table(), results.interval(), percent=measure.is_share)
    title = f"final test {measure.column}" + (" (%)" if measure.is_share else "")
    # Narrow enough for five columns with their intervals on a terminal of 80.
    shown = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    shown.add_column("defence", overflow="fold")
    for column in table.columns:
        shown.add_column(str(column), justify="right", no_wrap=len(table.columns) <= 5)
    for name, row in table.iterrows():
        shown.add_row(str(name), *row)
    console.print(shown)
    end = "lowest" if measure.best == "max" else "highest"
    console.print(f"[dim]worst: the {end} of the row, the score of a defence; ± 95 % interval[/]")


def show_worst_cases(found: list[WorstCase], console: Console) -> None:
    """Print which member of ``auto`` won against each defence, and what may be wrong with that."""
    if not found:
        return
    frame = worst_case.words(found)
    shown = Table(title="worst case of attack = 'auto' (%)", title_justify="left")
    shown.add_column("defence")
    for column in frame.columns:
        shown.add_column(str(column))
    for name, row in frame.iterrows():
        shown.add_row(str(name), *row)
    console.print(shown)
    for one in found:
        for flag in one.flags:
            console.print(f"[bold yellow]flag[/] {one.defence}: {flag}", soft_wrap=True)


def show_notices(lines: list[str], console: Console) -> None:
    """Say loudly what makes the numbers say less than they seem to."""
    for line in lines:
        console.print("[bold red]note:[/]", line, highlight=False, soft_wrap=True)


def show_written(paths: list[Path], console: Console) -> None:
    """Say which files were written."""
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True)


def defence(experiment: Experiment) -> str:
    """Write pre-aggregators and rule with their settings."""
    return spelt(*experiment.stages)


def as_json(results: Results, folders: Sequence[Path]) -> dict[str, Any]:
    """Return the table, its intervals and each run's folder, for machines."""
    return {
        # Through pandas, which writes null for NaN: JSON has no NaN.
        "table": json.loads(results.table().to_json(orient="index")),
        "interval": json.loads(results.interval().to_json(orient="index")),
        "auto": [
            {key: None if value != value else value for key, value in asdict(one).items()}
            for one in results.worst_cases
        ],
        "runs": [
            {"run": e.run_id, "name": e.name, "seed": e.seed, "folder": str(path)}
            for (e, _), path in zip(results.runs, folders, strict=True)
        ],
    }


@contextmanager
def telling_workers(terminal: Console, *, quiet: bool) -> Iterator[None]:
    """Say inside the block on which machines the workers of a Ray cluster are."""
    if quiet:
        yield
        return
    log = logging.getLogger("fedrobust.cluster")
    handler = RichHandler(console=terminal, show_time=False, show_level=False, show_path=False)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
