"""The transfer paper's ``gpu.toml`` at a stated size: fewer images and passes, all its networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu import images
from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from experiments.simulation import resolve

FILE = Path(__file__).parents[2] / "papers/transfer/gpu.toml"
SMALLER: dict[str, Any] = {
    "rounds": 2, "ensemble.train_images": 5000, "ensemble.test_images": 2000,
    "ensemble.trials": 2, "ensemble.tune_epochs": [1, 1], "transfer.epochs": 2,
    "transfer.images": 500,
}  # fmt: skip
TINY: dict[str, Any] = {
    "model": "small_plain", "ensemble.architectures": ["small_plain", "small_wide"],
    "ensemble.train_images": 60, "ensemble.test_images": 20, "ensemble.batch_size": 10,
    "transfer.surrogates": ["small_plain", "small_wide"], "transfer.images": 6,
    "transfer.epochs": 1, "transfer.batch_size": 10, "ensemble.probe_images": 4, "rounds": 1,
}  # fmt: skip
WANTED = ("same", "full", "central")  # paradigms; the first vote of each


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield one cell a paradigm: 7 nodes of one network, 7 of different ones, and one node."""
    for paradigm in scale.of(WANTED, WANTED[:2]):
        yield paradigm, partial(measured, paradigm)


def measured(paradigm: str, scale: Scale) -> Row:
    """Run one paradigm of the study."""
    with images.cifar10(scale, scale.of(images.FULL, 100)) as (name, told):
        changes = {"data": name, "seed": 1} | SMALLER | scale.of({}, TINY)
        found = resolve(FILE, changes)
        clients = 1 if paradigm == "central" else 7
        (e, *_) = [e for e in found if e.ensemble.paradigm == paradigm and e.clients == clients]
        return timed(e, scale) | {"data": told}
