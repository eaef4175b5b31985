"""Distributed adversarial training with PreAct-ResNet-18 on CIFAR-10, a step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.benchmarks.gpu import images
from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from experiments.simulation import resolve

FILE = Path(__file__).parents[2] / "papers/dat/cifar10.toml"
CELLS = (("float32", 32), ("tf32", 32), ("bf16", 32), ("float32", 8))
TINY = {
    "model": "bn_cnn", "clients": 2, "training.batch_size": 4, "adversarial.eval_images": 10,
    "adversarial.eval_steps": 2,
}  # fmt: skip


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield a cell a precision, and one with 8 bits a value on the wire."""
    for precision, bits in CELLS:
        yield f"{precision}, {bits} bits", partial(measured, precision, bits)


def measured(precision: str, bits: int, scale: Scale) -> Row:
    """Run some steps of DAT-PGD with LALR."""
    with images.cifar10(scale, scale.of(images.FULL, 60)) as (name, told):
        changes = {
            "data": name,
            "model": "preactresnet18",
            "rounds": scale.of(10, 3),
            "training.precision": precision,
            "compression.bits": bits,
            "server.evaluate_every": 1000,
            "adversarial.eval_images": 200,
            **scale.of({}, TINY),
        }
        (e,) = resolve(FILE, changes)
        return timed(e, scale) | {"data": told}
