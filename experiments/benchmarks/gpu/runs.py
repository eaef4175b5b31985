"""One experiment on the device: its rounds timed one by one, cut off in time."""

from __future__ import annotations

import statistics
import time
from typing import Any

from experiments.benchmarks.gpu.plan import Row, Scale
from experiments.benchmarks.measuring import peak_of, settle
from experiments.simulation import run_one
from fedrobust.experiment.schema import Experiment


class Enough(Exception):
    """The time of the cell is over."""


def timed(e: Experiment, scale: Scale) -> Row:
    """Run an experiment on the scale's device; return its rounds, times, memory and accuracy.

    ``round_seconds`` is the median of the rounds after the first, which warms up. A run that takes
    longer than the scale's seconds ends there: ``cut`` says so, ``rounds`` how far it came.
    """
    marks: dict[int, float] = {}
    last: Row = {}
    began = time.perf_counter()

    def on_row(row: Row) -> None:
        settle(scale.device)
        marks[row["round"]] = time.perf_counter()
        last.update(row)
        if marks[row["round"]] - began > scale.seconds and row["round"] < e.rounds:
            raise Enough

    def run() -> None:
        try:
            run_one(e, device=scale.device, data_root=scale.data_root, on_row=on_row)
        except Enough:
            last["cut"] = True

    peak = peak_of(run, device=scale.device)
    return _line(marks, began, last) | {"peak_bytes": peak}


def _line(marks: dict[int, float], began: float, last: dict[str, Any]) -> Row:
    seconds = marks[max(marks)] - began
    gaps = [marks[r] - marks[r - 1] for r in marks if r - 1 in marks and r > 1]
    each = statistics.median(gaps) if gaps else None
    return {
        "rounds": last["round"],
        "cut": last.get("cut", False),
        "seconds": seconds,
        "round_seconds": each,
        "clients_per_second": last["replies"] / each if each and "replies" in last else None,
        "accuracy": last.get("accuracy"),
    }
