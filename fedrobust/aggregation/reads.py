"""Reads of a float32 matrix on the CPU, compiled, each of which finds two things at once.

Beside what a rule looks at, a read finds each row's largest magnitude, and with it the rows that
are not finite: what guards a rule costs no read of its own.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.threads import in_parts

WIDE = 2048  # columns of a strip: their sums stay in the first-level cache
CHUNKS = 64  # of columns, at most: each keeps the largest magnitudes that it saw
ALL_BUT_SIGN = 0x7FFFFFFF
INFINITY = 0x7F800000  # the bits of a float32 that is not finite, without its sign, are no smaller


def lengths_and_largest(updates: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's length, (n,) float64, and its largest magnitude, (n,) float32."""
    matrix = updates.detach().numpy()
    squared, largest = np.zeros(len(matrix)), np.zeros(len(matrix), dtype=np.uint32)
    in_parts(_lengths, matrix, squared, largest, parts=len(matrix), work=matrix.size)
    return torch.from_numpy(squared).sqrt_(), torch.from_numpy(largest.view(np.float32))


def signs_and_largest(updates: Tensor) -> tuple[Tensor, Tensor]:
    """Count positive minus negative values of each column, (d,) float32; and as above."""
    matrix = updates.detach().numpy()
    n, d = matrix.shape
    chunks = max(1, min(CHUNKS, d // WIDE))
    out = torch.empty(d, dtype=torch.float32)
    largest = np.zeros((chunks, n), dtype=np.int32)
    in_parts(_sign_sums, matrix, out.numpy(), largest, parts=chunks, work=matrix.size)
    return out, torch.from_numpy(largest.max(0).view(np.float32))


def all_finite(vector: Tensor) -> bool:
    """Whether all values are finite: one read, where ``isfinite`` makes three vectors."""
    plain = vector.dtype == torch.float32 and vector.device.type == "cpu"
    if plain and vector.dim() == 1 and vector.is_contiguous():
        return bool(_largest(vector.detach().numpy().view(np.uint32)) < INFINITY)
    return bool(torch.isfinite(vector).all())


@numba.njit(nogil=True, cache=True)
def _largest(bits: np.ndarray) -> int:  # pragma: no cover - compiled
    most, magnitude = np.uint32(0), np.uint32(ALL_BUT_SIGN)
    for k in range(len(bits)):
        most = max(most, np.uint32(bits[k] & magnitude))
    return int(most)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _lengths(
    x: np.ndarray, squared: np.ndarray, largest: np.ndarray, first_row: int, last_row: int
) -> None:  # pragma: no cover - compiled
    bits, magnitude = x.view(np.uint32), np.uint32(ALL_BUT_SIGN)
    for i in range(first_row, last_row):
        total, most = 0.0, np.uint32(0)
        for k in range(np.uint64(x.shape[1])):
            value = np.float64(x[i, k])
            total += value * value
            # Read as whole numbers, magnitudes are ordered as the floats are, with infinity and
            # NaN above them all.
            most = max(most, np.uint32(bits[i, k] & magnitude))
        squared[i], largest[i] = total, most


@numba.njit(nogil=True, cache=True)
def _sign_sums(
    x: np.ndarray, out: np.ndarray, largest: np.ndarray, first_chunk: int, last_chunk: int
) -> None:  # pragma: no cover - compiled
    n, d = x.shape
    chunks, strips = len(largest), -(-d // WIDE)
    bits, magnitude = x.view(np.int32), np.int32(ALL_BUT_SIGN)
    total = np.zeros(WIDE, dtype=np.int32)
    for c in range(first_chunk, last_chunk):
        for b in range(strips * c // chunks, strips * (c + 1) // chunks):
            start, width = np.uint64(b * WIDE), np.uint64(min(WIDE, d - b * WIDE))
            total[:] = 0
            for i in range(n):
                most = largest[c, i]
                for k in range(width):
                    value = bits[i, start + k]
                    size = np.int32(value & magnitude)
                    # The sign bit alone moves 1 to -1: faster than two comparisons of floats.
                    sign = np.int32(np.int32(1) | (value >> np.int32(31)))
                    total[k] += np.int32(size > 0) * sign
                    most = max(most, size)
                largest[c, i] = most
            for k in range(width):
                out[start + k] = total[k]
