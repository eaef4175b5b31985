"""One flat vector <-> the named layers that stock Flower apps send."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower.serialization import FLOATS, npy_values

Shapes = Mapping[str, tuple[int, ...]]

# Running statistics of normalisation layers: no coordinates of an update, aggregated on their own.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def to_layers(vector: Tensor, shapes: Shapes) -> ArrayRecord:
    """Cut a vector (d,) into named arrays, in the order of ``shapes``."""
    record, offset = ArrayRecord(), 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        record[name] = Array(vector[offset : offset + size].view(shape).numpy())
        offset += size
    return record


def from_layers(record: ArrayRecord, shapes: Shapes) -> Tensor:
    """Join the named arrays of a trusted strategy into one float32 vector (d,).

    Raises
    ------
    ValueError
        If a layer is missing, extra, or of another shape.
    """
    arrays = read_layers(record, {name: ("float32", shape) for name, shape in shapes.items()})
    return torch.cat([array.reshape(-1).float() for array in arrays.values()])


def read_layers(
    record: ArrayRecord, expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """Read named arrays of expected dtype and shape, trusting none of their claims.

    A floating layer may come in any of ``FLOATS``: Flower's own server optimizers return float64.

    Raises
    ------
    ValueError
        If a layer is missing or extra, of another dtype or shape, or if its bytes are not what
        its header declares; ``Refusal`` if it holds a value that is not finite.
    """
    if set(record.keys()) != set(expected):
        odd = sorted(set(record.keys()) ^ set(expected))
        raise ValueError(f"layers missing or extra: {', '.join(odd)[:80]}")
    return {name: _read(name, record[name], *expected[name]) for name in expected}


def _read(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> Tensor:
    allowed = FLOATS if dtype in FLOATS else (dtype,)
    if array.dtype not in allowed or tuple(array.shape) != shape:
        found = f"{array.dtype} {tuple(array.shape)}"
        raise ValueError(f"layer {name!r} is {found}, expected {dtype} {shape}")
    try:
        values = npy_values(array)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    # So far only claims were compared: the bytes have a header of their own.
    if str(values.dtype) != array.dtype or values.shape != shape:
        raise ValueError(f"layer {name!r} holds {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        raise Refusal(f"layer {name!r} holds values that are not finite")
    # A copy: the numbers of a ``TensorArray`` are its sender's own memory.
    return torch.from_numpy(np.array(values, copy=True))
