"""Promises that can be checked: digests and linear sketches.

A worker first commits to each file's value; the server decides on digests who is believed; what is
sent afterwards is checked. A digest checks one vector; a sketch, being linear, checks a sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import check_tolerance
from fedrobust.seeds import generator

# Directions are drawn block by block: another length is another sketch.
BLOCK = 8_192
ROUNDING = 1e-5  # relative to the norm: two sketches of one float32 vector, made elsewhere


def digest(vector: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's float32 values as little-endian bytes, row by row.

    The shape is not part of it. Bitwise: 0.0 and -0.0 differ.

    Raises
    ------
    ValueError
        For another dtype: a silent conversion would let different values agree.
    """
    if vector.dtype != torch.float32:
        raise ValueError(f"a digest needs float32 values, got {vector.dtype}")
    # Little-endian by name, for workers on other processors.
    array = vector.detach().flatten().contiguous().cpu().numpy().astype("<f4", copy=False)
    return hashlib.sha256(array.data).digest()  # of the memory itself, without a copy


def sketch(values: Tensor, *, seed: int, size: int = 64) -> Tensor:
    """Project vectors (..., d) on ``size`` Gaussian directions: float64 (..., size), linear.

    Scaled so that the squared norm is kept on average (relative deviation about sqrt(2 / size)).
    The seed must be unknown until the values are committed to: who knows it can move a value inside
    the sketch's null space. Products are summed in single precision within a block of coordinates
    and in double precision over the blocks, so that sketches of one vector agree up to ``ROUNDING``
    whatever they were stacked with. Memory is O(size x block).

    Notes
    -----
    Directions are Gaussian, not random signs: an error in two coordinates only is orthogonal to
    half of all sign vectors, but the projection of any error e on a Gaussian direction is below
    t |e| with probability about 0.8 t. The sketch of size 8 is below 0.05 |e| with probability
    4e-10.
    """
    if size < 1:
        raise ValueError(f"a sketch needs a size of at least 1, got {size}")
    result = torch.zeros(*values.shape[:-1], size, dtype=torch.float64)
    for number, start in enumerate(range(0, values.shape[-1], BLOCK)):
        # On the CPU in any case: server and workers must draw and multiply alike.
        part = values[..., start : start + BLOCK].detach().cpu().float()
        source = generator(seed, "sketch", round=number)
        directions = torch.randn(size, part.shape[-1], generator=source)
        # This way round the product of a flat and a tall matrix takes less than half the time.
        made = directions @ part.reshape(-1, part.shape[-1]).T
        result += made.T.reshape(result.shape).double()
    return result / size**0.5


def sketches_agree(first: Tensor, second: Tensor, *, tolerance: float) -> bool:
    """Whether two sketches differ by at most the relative L2 ``tolerance`` (< 1).

    The distance of the sketches estimates that of the vectors; not finite never agrees.
    """
    check_tolerance(tolerance)
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return False
    gap = torch.linalg.vector_norm(first - second)
    largest = max(torch.linalg.vector_norm(first), torch.linalg.vector_norm(second))
    return bool(gap <= tolerance * largest)


def check_sum(
    total: Tensor, sketches: Sequence[Tensor] | Tensor, *, seed: int, tolerance: float = 1e-5
) -> bool:
    """Whether a vector (d,) is the sum of the files whose sketches (files, size) are accepted.

    ``tolerance`` is relative to the sum of the sketches' norms, since a float32 sum rounds in that
    proportion; a Byzantine worker may move the sum by as much.
    """
    parts = sketches if isinstance(sketches, Tensor) else torch.stack(list(sketches))
    return sums_agree(sketch(total, seed=seed, size=parts.shape[-1]), parts, tolerance=tolerance)


def sums_agree(own: Tensor, parts: Tensor, *, tolerance: float) -> bool:
    """Whether the sketch (size,) of a sum is the sum of its files' sketches (files, size)."""
    check_tolerance(tolerance)
    if not (torch.isfinite(own).all() and torch.isfinite(parts).all()):
        return False
    gap = torch.linalg.vector_norm(own - parts.sum(0))
    return bool(gap <= tolerance * torch.linalg.vector_norm(parts, dim=-1).sum())
