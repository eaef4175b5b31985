"""Every rule beside the limit of its arithmetic, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.rules import COMBINATORIAL, rows_of
from fedrobust.aggregation import PREAGGREGATORS, RULES

SIZES = ((100, 1_000_000), (20, 1_000_000), (500, 100_000), (300, 1_000_000))
TINY = ((20, 2_000),)
# The commonest first: a cut-off loses the rare ones.
FIRST = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "nnm", "geometric_median",
         "meamed", "centered_clipping", "sign_guard", "bulyan", "caf", "dnc")  # fmt: skip
KEPT = ("seconds", "reference", "reference_seconds", "ratio", "peak_bytes", "matrix_bytes")


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield one cell a rule and size."""
    names = [*FIRST, *(name for name in [*RULES, *PREAGGREGATORS] if name not in FIRST)]
    for n, d in scale.of(SIZES, TINY):
        for name in names:
            if name not in COMBINATORIAL or n <= 20:
                yield f"{name} {n} x {d}", partial(measured, name, n, d)


def measured(name: str, n: int, d: int, scale: Scale) -> Row:
    """Measure one rule on standard normal updates."""
    updates = torch.randn(n, d, generator=torch.Generator().manual_seed(1)).to(scale.device)
    (row,) = rows_of(name, updates, device=scale.device, peers=False)
    return {key: row[key] for key in KEPT}
