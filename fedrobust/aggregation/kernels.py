"""Passes over a float32 matrix on the CPU, compiled: order statistics of columns, norms of rows.

Columns are sorted by a network over the rows: a comparator moves the smaller of two rows' values up
and the larger down. It is the same operation for all columns of a strip, without a branch, so that
the compiler turns it into vector minima and maxima; a strip stays in the cache from the first
comparator to the last. Comparators that cannot reach a wanted rank are left out, and three that
meet in two rows run together, so that four rows are read and written once instead of six.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.aggregation.networks import lanes, tiles
from fedrobust.threads import in_parts


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
    steps, wide = tiles(n, first, last), lanes(n)
    _in_blocks(_rank_mean, updates, wide, steps, first, last, out.numpy())
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
    m = len(rows)
    steps, chosen = tiles(m, 0, m), rows.cpu().numpy()
    _in_blocks(_nearest_mean, updates, lanes(m), chosen, steps, first, last, keep, out.numpy())
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


def _in_blocks(kernel: Callable[..., None], updates: Tensor, wide: int, *arguments: Any) -> None:
    """Run a kernel over all strips of columns, shared out to as many threads as the user allows."""
    matrix, parts = updates.detach().numpy(), -(-updates.shape[1] // wide)
    in_parts(kernel, matrix, wide, *arguments, parts=parts, work=updates.numel())


@numba.njit(inline="always")
def _sort(strip: np.ndarray, wide: int, steps: np.ndarray) -> None:  # pragma: no cover - compiled
    """Run the network over a strip: row i is in strip[i * wide : (i + 1) * wide]."""
    width = np.uint64(wide)
    for t in range(len(steps)):
        a, b = steps[t, 0] * width, steps[t, 1] * width
        c, d = steps[t, 2] * width, steps[t, 3] * width
        if c == d:
            for k in range(width):
                low, high = strip[a + k], strip[b + k]
                strip[a + k] = min(low, high)
                strip[b + k] = max(low, high)
        else:
            # All four are read before one is written: the compiler then keeps them in registers.
            for k in range(width):
                p, q, r, s = strip[a + k], strip[b + k], strip[c + k], strip[d + k]
                upper, lower = max(p, q), min(r, s)
                strip[a + k] = min(p, q)
                strip[d + k] = max(r, s)
                strip[c + k] = min(lower, upper)
                strip[b + k] = max(lower, upper)


@numba.njit(inline="always")
def _sum_of_ranks(
    strip: np.ndarray, wide: int, first: int, last: int, total: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Sum ranks first..last-1 of a sorted strip into ``total``, (wide,) float64."""
    total[:] = 0
    for i in range(first, last):
        at = np.uint64(i * wide)
        for k in range(np.uint64(wide)):
            total[k] += strip[at + k]


@numba.njit(nogil=True, cache=True)
def _rank_mean(
    x: np.ndarray,
    wide: int,
    steps: np.ndarray,
    first: int,
    last: int,
    out: np.ndarray,
    first_strip: int,
    last_strip: int,
) -> None:  # pragma: no cover - compiled
    n, d = x.shape
    strip = np.zeros(n * wide, dtype=np.float32)  # once: fresh pages cost as much as sorting
    total = np.zeros(wide, dtype=np.float64)
    for b in range(first_strip, last_strip):
        start, width = np.uint64(b * wide), np.uint64(min(wide, d - b * wide))
        for i in range(n):
            to = np.uint64(i * wide)
            for k in range(width):
                strip[to + k] = x[i, start + k]
        _sort(strip, wide, steps)
        _sum_of_ranks(strip, wide, first, last, total)
        for k in range(width):
            out[start + k] = np.float32(total[k] / (last - first))


@numba.njit(nogil=True, cache=True)
def _nearest_mean(
    x: np.ndarray,
    wide: int,
    rows: np.ndarray,
    steps: np.ndarray,
    first: int,
    last: int,
    keep: int,
    out: np.ndarray,
    first_strip: int,
    last_strip: int,
) -> None:  # pragma: no cover - compiled
    n, d = len(rows), x.shape[1]
    strip = np.zeros(n * wide, dtype=np.float32)
    total = np.zeros(wide, dtype=np.float64)
    centre, begin = np.zeros(wide, dtype=np.float32), np.zeros(wide, dtype=np.int32)
    for b in range(first_strip, last_strip):
        start, width = np.uint64(b * wide), np.uint64(min(wide, d - b * wide))
        for i in range(n):
            row, to = rows[i], np.uint64(i * wide)
            for k in range(width):
                strip[to + k] = x[row, start + k]
        _sort(strip, wide, steps)
        _sum_of_ranks(strip, wide, first, last, total)
        centre[:] = total / (last - first)
        _window(strip, centre, keep, n, begin)
        _sum_of_windows(strip, begin, keep, n, total)
        for k in range(width):
            values = strip[np.uint64(k) :: wide]
            if _tied(values, begin[k], keep, centre[k]):
                column = int(start + k)
                out[start + k] = _first_nearest(x, rows, column, keep, centre[k])
            else:
                out[start + k] = total[k] / keep


@numba.njit(inline="always")
def _window(
    strip: np.ndarray, centre: np.ndarray, keep: int, n: int, begin: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Find, per column, where the ``keep`` values nearest to the centre start: neighbours in order.

    As long as the value that the window leaves is farther than the one it takes, it moves on.
    """
    wide = len(centre)
    begin[:] = 0
    for r in range(n - keep):
        low, high = np.uint64(r * wide), np.uint64((r + keep) * wide)
        for k in range(np.uint64(wide)):
            begin[k] += np.int32(strip[high + k] - centre[k] < centre[k] - strip[low + k])


@numba.njit(inline="always")
def _sum_of_windows(
    strip: np.ndarray, begin: np.ndarray, keep: int, n: int, total: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Sum, per column, the ``keep`` values from ``begin`` on."""
    wide = len(begin)
    total[:] = 0
    for r in range(n):
        at = np.uint64(r * wide)
        for k in range(np.uint64(wide)):
            inside = (r >= begin[k]) & (r < begin[k] + keep)
            total[k] += strip[at + k] if inside else np.float32(0)


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
