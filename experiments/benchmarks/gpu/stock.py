"""Flower's own way, one node a client on Ray, beside ours, on the same device.

The package that is missing on most GPU machines is Ray: the case is skipped there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from experiments.benchmarks import engine
from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from experiments.flower_run import run_on_flower


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield ours as one stack and one by one, then stock Flower, which is the slowest."""
    for cohort in ("vmap", "off"):
        yield f"ours, cohort = {cohort!r}", partial(ours, cohort)
    yield "stock Flower", stock


def ours(cohort: str, scale: Scale) -> Row:
    """Run in process."""
    case, _ = described(scale, cohort)
    return timed(case, scale)


def stock(scale: Scale) -> Row:
    """Run with a node a client; without the rounds that start processes or evaluate."""
    case, clients = described(scale, "off")
    rows = run_on_flower(case, hosts=clients, device=scale.device)
    if lost := sum(clients - row["replies"] for row in rows[1:]):
        raise RuntimeError(f"{lost} replies lost, the rounds say nothing")
    each = statistics.median(row["seconds"] for row in rows[2:-1])
    return {
        "rounds": rows[-1]["round"],
        "round_seconds": each,
        "clients_per_second": clients / each,
        "accuracy": rows[-1].get("accuracy"),
    }


def described(scale: Scale, cohort: str) -> tuple[engine.Experiment, int]:
    """Return the experiment of the engine's benchmark, on the shipped sample."""
    clients = scale.of(20, 2)
    settings = engine.Settings(scale.of(10, 5), scale.device, "wall", None)
    return engine.experiment("cnn", clients, settings, cohort), clients
