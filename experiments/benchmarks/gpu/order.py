"""Where bisection on bits overtakes a sort, and products a grouped convolution, on the device.

What ``fedrobust.aggregation.ordered_bits.FROM`` should be, and which of ``CONVOLUTIONS`` a stack
should take, are read off here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.measuring import peak_of, side_by_side
from fedrobust import models
from fedrobust.aggregation import columns, ordered_bits
from fedrobust.cohort import Member, train_cohort
from fedrobust.cohort.convolutions import convolved
from fedrobust.data import load
from fedrobust.training import Recipe
from fedrobust.vector import FlatModel

CLIENTS = (20, 50, 100, 300, 1000)


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield the trimmed mean both ways for several numbers of clients, then a stacked CNN."""
    for n in scale.of(CLIENTS, (20,)):
        yield f"a tenth trimmed, {n} x 100,000", partial(ranks, n)
    for clients in scale.of((20, 100), (3,)):
        yield f"a step of {clients} stacked CNNs", partial(convolutions, clients)


def ranks(n: int, scale: Scale) -> Row:
    """Time the mean of the middle ranks: by bisection, and by a sort as the reference."""
    d, cut = scale.of(100_000, 500), n // 10
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(1)).to(scale.device)

    def bisected() -> torch.Tensor:
        return ordered_bits.rank_mean(values, cut, n - cut)

    def by_sort() -> torch.Tensor:
        return columns.averaged(values.sort(0).values[cut : n - cut])

    torch.testing.assert_close(bisected(), by_sort(), rtol=1e-5, atol=1e-6)
    ours, theirs = side_by_side(bisected, by_sort, device=scale.device, limit=4.0)
    peaks = [peak_of(call, device=scale.device) for call in (bisected, by_sort)]
    return {
        "seconds": ours,
        "reference": "torch.sort",
        "reference_seconds": theirs,
        "ratio": ours / theirs,
        "peak_bytes": peaks[0],
        "reference_peak_bytes": peaks[1],
    }


def convolutions(clients: int, scale: Scale) -> Row:
    """Time one step of a stack of small CNNs: convolutions as products, and as grouped ones."""
    dataset, each = load("fashionmnist-sample").to(scale.device), scale.of(32, 4)
    model = FlatModel(models.build_for("cnn", dataset, seed=1).to(scale.device))
    start, recipe = model.vector.clone(), Recipe(batch_size=each)
    images = dataset.train_images[: clients * each].split(each)
    labels = dataset.train_labels[: clients * each].split(each)

    def step(kind: str) -> list[tuple[torch.Tensor, float]]:
        cohort = [Member(x, y, recipe, torch.Generator().manual_seed(i))
                  for i, (x, y) in enumerate(zip(images, labels, strict=True))]  # fmt: skip
        with convolved(kind):
            return train_cohort(model, start, cohort, cohort="vmap")

    for (one, _), (other, _) in zip(step("products"), step("grouped"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    ours, theirs = side_by_side(
        partial(step, "products"), partial(step, "grouped"), device=scale.device, limit=6.0
    )
    return {
        "seconds": ours,
        "reference": "grouped convolutions",
        "reference_seconds": theirs,
        "ratio": ours / theirs,
        "peak_bytes": peak_of(partial(step, "products"), device=scale.device),
        "reference_peak_bytes": peak_of(partial(step, "grouped"), device=scale.device),
    }
