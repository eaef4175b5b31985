"""Passes over a float32 matrix on the CPU, compiled: order statistics of columns, norms of rows.

Columns are sorted by a network over the rows: a comparator moves the smaller of two rows' values up
and the larger down. It is the same operation for all columns of a strip, without a branch, so that
the compiler turns it into vector minima and maxima; a strip stays in the cache from the first
comparator to the last. Comparators that cannot reach a wanted rank are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.threads import in_parts

LANES = 32  # columns of a strip: one row of it is two vectors of 16 float32
STRIPS = 8  # strips that are loaded together, for longer runs of each row


def fits(updates: Tensor) -> bool:
    """Whether the kernels take this matrix: float32, on the CPU, rows in one piece."""
    return (
        updates.dtype == torch.float32
        and updates.device.type == "cpu"
        and updates.stride(1) == 1
        and len(updates) > 1
    )


def rank_mean(updates: Tensor, first: int, last: int) -> Tensor:
    """Average the values of ranks first..last-1 of each column: (n, d) -> (d,).

    Parameters
    ----------
    updates
        Finite float32 values; see ``fits``. NaN has no rank: callers set such rows aside before.
    """
    out = torch.empty(updates.shape[1], dtype=torch.float32)
    n = len(updates)
    pairs = network(n, first, last)
    _in_blocks(_rank_mean, updates, pairs, first, last, out.numpy())
    return out


def nearest_mean(updates: Tensor, rows: Tensor, first: int, last: int, keep: int) -> Tensor:
    """Average, per column of some rows, the ``keep`` values nearest to the mean of some ranks.

    Parameters
    ----------
    updates
        See ``rank_mean``.
    rows
        Which rows take part, (m,); of equally near values the one of the earlier row is kept.
    first, last
        The centre is the mean of the values of ranks first..last-1.
    """
    out = torch.empty(updates.shape[1], dtype=torch.float32)
    pairs = network(len(rows), 0, len(rows))
    chosen = rows.cpu().numpy()
    _in_blocks(_nearest_mean, updates, chosen, pairs, first, last, keep, out.numpy())
    return out


def row_distances(updates: Tensor, centre: Tensor) -> Tensor:
    """Return the squared distance of each row from a centre, (n,), in float64."""
    out = np.zeros(len(updates))
    matrix, point = updates.detach().numpy(), centre.detach().numpy()
    in_parts(_row_distances, matrix, point, out, parts=len(matrix), work=matrix.size)
    return torch.from_numpy(out)


def largest_values(updates: Tensor) -> Tensor:
    """Return the largest magnitude of each row, (n,) float32, in one read.

    Infinity or NaN where a row holds a value that is not finite.
    """
    out = np.zeros(len(updates), dtype=np.uint32)
    matrix = updates.detach().numpy()
    in_parts(_largest_bits, matrix, out, parts=len(matrix), work=matrix.size)
    return torch.from_numpy(out.view(np.float32))


def sign_sums(updates: Tensor) -> Tensor:
    """Count positive minus negative values of each column: (n, d) -> (d,) float32."""
    out = torch.empty(updates.shape[1], dtype=torch.float32)
    _in_blocks(_sign_sums, updates, out.numpy())
    return out


def _in_blocks(kernel: Callable[..., None], updates: Tensor, *arguments: Any) -> None:
    """Run a kernel over all blocks of columns, shared out to as many threads as the user allows."""
    blocks = -(-updates.shape[1] // (LANES * STRIPS))
    in_parts(kernel, updates.detach().numpy(), *arguments, parts=blocks, work=updates.numel())


@lru_cache(maxsize=64)
def network(n: int, first: int, last: int) -> np.ndarray:
    """Return the comparators (m, 2) of Batcher's odd-even merge sort that ranks first..last need.

    References
    ----------
    Batcher, Sorting Networks and Their Applications, AFIPS 1968; Knuth, TAOCP 3, 5.2.2, M.
    """
    wanted = set(range(first, last))
    kept = []
    for low, high in reversed(_batcher(n)):
        if low in wanted or high in wanted:
            kept.append((low, high))
            wanted |= {low, high}
    return np.array(kept[::-1], dtype=np.uint64).reshape(-1, 2)  # unsigned: no wrap-around checks


def _batcher(n: int) -> list[tuple[int, int]]:
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return pairs


@numba.njit(inline="always")
def _load(
    x: np.ndarray, rows: np.ndarray, start: int, width: int, strips: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Copy ``width`` columns of some rows into strips: (strip, row, lane), flat."""
    n = len(rows)
    for i in range(n):
        row = rows[i]
        for s in range((width + LANES - 1) // LANES):
            to, at = (s * n + i) * LANES, start + s * LANES
            # A bound that the compiler does not know: a loop of 32 it unrolls, one by one.
            for k in range(min(LANES, width - s * LANES)):
                strips[np.uint64(to + k)] = x[row, np.uint64(at + k)]


@numba.njit(inline="always")
def _sort(strips: np.ndarray, base: int, pairs: np.ndarray) -> None:  # pragma: no cover - compiled
    """Run the network over the strip that starts at ``base``."""
    lanes, begin = np.uint64(LANES), np.uint64(base)
    for c in range(len(pairs)):
        low, high = pairs[c, 0] * lanes + begin, pairs[c, 1] * lanes + begin
        for k in range(lanes):
            a, b = strips[low + k], strips[high + k]
            strips[low + k] = min(a, b)
            strips[high + k] = max(a, b)


@numba.njit(inline="always")
def _mean_of_ranks(
    strips: np.ndarray, base: int, first: int, last: int
) -> np.ndarray:  # pragma: no cover - compiled
    """Average ranks first..last-1 of a sorted strip, summed in float64."""
    total = np.zeros(LANES, dtype=np.float64)
    for i in range(first, last):
        for k in range(LANES):
            total[k] += strips[np.uint64(base + i * LANES + k)]
    return (total / (last - first)).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _rank_mean(
    x: np.ndarray,
    pairs: np.ndarray,
    first: int,
    last: int,
    out: np.ndarray,
    first_block: int,
    last_block: int,
) -> None:  # pragma: no cover - compiled
    n, d = x.shape
    block = LANES * STRIPS
    rows = np.arange(n)
    strips = np.empty(
        STRIPS * n * LANES, dtype=np.float32
    )  # once: fresh pages cost as much as sorting
    for b in range(first_block, last_block):
        start = b * block
        width = min(block, d - start)
        _load(x, rows, start, width, strips)
        for s in range((width + LANES - 1) // LANES):
            base = s * n * LANES
            _sort(strips, base, pairs)
            total = _mean_of_ranks(strips, base, first, last)
            for k in range(min(LANES, width - s * LANES)):
                out[start + s * LANES + k] = total[k]


@numba.njit(nogil=True, cache=True)
def _nearest_mean(
    x: np.ndarray,
    rows: np.ndarray,
    pairs: np.ndarray,
    first: int,
    last: int,
    keep: int,
    out: np.ndarray,
    first_block: int,
    last_block: int,
) -> None:  # pragma: no cover - compiled
    n, d = len(rows), x.shape[1]
    block = LANES * STRIPS
    strips = np.empty(STRIPS * n * LANES, dtype=np.float32)
    for b in range(first_block, last_block):
        start = b * block
        width = min(block, d - start)
        _load(x, rows, start, width, strips)
        for s in range((width + LANES - 1) // LANES):
            base = s * n * LANES
            _sort(strips, base, pairs)
            centre = _mean_of_ranks(strips, base, first, last)
            # The kept values are neighbours in the order: find where their window starts.
            begin = np.zeros(LANES, dtype=np.int32)
            for r in range(n - keep):
                for k in range(LANES):
                    below = centre[k] - strips[np.uint64(base + r * LANES + k)]
                    above = strips[np.uint64(base + (r + keep) * LANES + k)] - centre[k]
                    begin[k] += np.int32(above < below)
            total = np.zeros(LANES, dtype=np.float64)
            for r in range(n):
                for k in range(LANES):
                    value = strips[np.uint64(base + r * LANES + k)]
                    inside = (r >= begin[k]) & (r < begin[k] + keep)
                    total[k] += value if inside else np.float32(0)
            for k in range(min(LANES, width - s * LANES)):
                column = start + s * LANES + k
                values = strips[base + k : base + n * LANES : LANES]
                if _tied(values, begin[k], keep, centre[k]):
                    out[column] = _first_nearest(x, rows, column, keep, centre[k])
                else:
                    out[column] = total[k] / keep


@numba.njit
def _tied(
    values: np.ndarray, begin: int, keep: int, centre: float
) -> bool:  # pragma: no cover - compiled
    """Whether a value outside the window is as near as the window's far end, and different."""
    low, high = values[begin], values[begin + keep - 1]
    left = begin > 0 and values[begin - 1] != high and centre - values[begin - 1] == high - centre
    after = begin + keep
    right = after < len(values) and values[after] != low and values[after] - centre == centre - low
    return left or right


@numba.njit
def _first_nearest(
    x: np.ndarray, rows: np.ndarray, column: int, keep: int, centre: float
) -> float:  # pragma: no cover - compiled
    """Average the nearest values of one column, the earlier row first among equally near ones."""
    away = np.empty(len(rows), dtype=np.float32)
    for i in range(len(rows)):
        away[i] = abs(x[rows[i], column] - centre)
    order = np.argsort(away, kind="mergesort")
    total = 0.0
    for i in range(keep):
        total += x[rows[order[i]], column]
    return total / keep


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _row_distances(
    x: np.ndarray, centre: np.ndarray, out: np.ndarray, first_row: int, last_row: int
) -> None:  # pragma: no cover - compiled
    d = x.shape[1]
    for i in range(first_row, last_row):
        total = 0.0
        for k in range(d):
            offset = np.float64(x[i, np.uint64(k)]) - np.float64(centre[np.uint64(k)])
            total += offset * offset
        out[i] = total


@numba.njit(nogil=True, cache=True)
def _largest_bits(
    x: np.ndarray, out: np.ndarray, first_row: int, last_row: int
) -> None:  # pragma: no cover - compiled
    d = x.shape[1]
    bits = x.view(np.uint32)
    magnitude = np.uint32(0x7FFFFFFF)  # all but the sign
    for i in range(first_row, last_row):
        # Read as whole numbers, magnitudes are ordered as the floats are, with infinity and NaN
        # above them all.
        most = np.uint32(0)
        for k in range(d):
            most = max(most, np.uint32(bits[i, np.uint64(k)] & magnitude))
        out[i] = most


@numba.njit(nogil=True, cache=True)
def _sign_sums(
    x: np.ndarray, out: np.ndarray, first_block: int, last_block: int
) -> None:  # pragma: no cover - compiled
    n, d = x.shape
    block = LANES * STRIPS
    for b in range(first_block, last_block):
        start = b * block
        width = min(block, d - start)
        total = np.zeros(block, dtype=np.float32)
        for i in range(n):
            for k in range(width):
                value = x[i, np.uint64(start + k)]
                total[k] += np.float32(value > 0) - np.float32(value < 0)
        for k in range(width):
            out[start + k] = total[k]
