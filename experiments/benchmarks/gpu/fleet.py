"""``experiments/fleet.toml``: 300 clients of three kinds under ALIE."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.benchmarks.gpu import images
from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from experiments.simulation import resolve

FILE = Path(__file__).parents[2] / "fleet.toml"
TINY = {"clients": 10, "byzantine": 2}


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield the fleet as stacks, then one by one."""
    for cohort in ("vmap", "off"):
        yield f"cohort = {cohort!r}", partial(measured, cohort)


def measured(cohort: str, scale: Scale) -> Row:
    """Run some rounds of the fleet."""
    with images.cifar10(scale, scale.of(images.FULL, 400)) as (name, told):
        changes = {
            "data": name,
            "rounds": scale.of(6, 3),
            "training.cohort": cohort,
            "server.evaluate_every": 1000,
            **scale.of({}, TINY),
        }
        (e,) = resolve(FILE, changes)
        return timed(e, scale) | {"data": told}
