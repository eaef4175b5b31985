"""Rounds beside the bare training loop, in process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from experiments.benchmarks.engine import Settings, in_process
from experiments.benchmarks.gpu.plan import Cell, Row, Scale

SIZES = (
    ("stacked", "cnn", 300), ("in_process", "cnn", 300), ("stacked", "mlp", 300),
    ("in_process", "mlp", 300), ("attacked", "cnn", 300), ("stacked", "cnn", 100),
    ("in_process", "cnn", 100), ("stacked", "wide_mlp", 100), ("stacked", "mlp", 1000),
)  # fmt: skip
TINY = (("stacked", "mlp", 5), ("in_process", "cnn", 5), ("attacked", "mlp", 5))
KEPT = ("seconds", "reference_seconds", "ratio", "overhead_ms_per_client", "clients_per_second",
        "peak_bytes", "alone")  # fmt: skip


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield one cell a grid, model and number of clients."""
    for grid, model, clients in scale.of(SIZES, TINY):
        yield f"{grid} {model} N={clients}", partial(measured, grid, model, clients)


def measured(grid: str, model: str, clients: int, scale: Scale) -> Row:
    """Measure one grid; FashionMNIST's shipped sample holds images enough for it."""
    settings = Settings(rounds=scale.of(8, 4), device=scale.device, clock="wall", data_root=None)
    row = in_process(model, clients, settings, grid)
    return {key: row[key] for key in KEPT if key in row}
