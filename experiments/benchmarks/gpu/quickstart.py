"""The quickstart's table on the device, beside the accuracies that a CPU gave."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from experiments.simulation import expand, read
from fedrobust.experiment.schema import Experiment

EXPERIMENTS = Path(__file__).parents[2]
SEED = 1


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield the cells of one seed."""
    document = read(EXPERIMENTS / "quickstart.toml")
    document["sweep"]["seed"] = [SEED]
    document["rounds"] = scale.of(document["rounds"], 3)
    known = pd.read_csv(EXPERIMENTS / "images/quickstart.csv")
    for e in expand(document)[: scale.of(None, 2)]:
        name = f"{e.attack['name']} against {defence(e)}"
        yield name, partial(measured, e, known)


def defence(e: Experiment) -> str:
    """Name a defence as the file of the CPU does."""
    return "+".join(stage["name"] for stage in e.stages)


def measured(e: Experiment, known: pd.DataFrame, scale: Scale) -> Row:
    """Run one cell; ``cpu_accuracy`` is what stands in ``experiments/images/quickstart.csv``."""
    same = (
        (known["attack"] == e.attack["name"])
        & (known["defence"] == defence(e))
        & (known["seed"] == SEED)
    )
    (accuracy,) = known[same]["accuracy"]
    return timed(e, scale) | {"cpu_accuracy": accuracy}
