"""Order statistics of each column on the CPU: a sorting network over the rows, block by block.

A comparator moves the smaller of two rows' values up and the larger down. It is the same operation
for all columns of a block, without a branch, so that the compiler turns it into vector minima and
maxima; the block stays in the cache from the first comparator to the last. Comparators that cannot
reach a wanted rank are left out.
"""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
import torch
from torch import Tensor

WIDTH = 256  # columns per block: 100 rows of 256 float32 are 100 kB


def fits(updates: Tensor) -> bool:
    """Whether the kernel takes this matrix: float32, on the CPU, rows in one piece."""
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
    pairs = network(len(updates), first, last)
    _rank_mean(updates.detach().numpy(), pairs, first, last, out.numpy())
    return out


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
    return np.array(kept[::-1], dtype=np.int32).reshape(-1, 2)


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


@numba.njit(parallel=True, cache=True)
def _rank_mean(
    x: np.ndarray, pairs: np.ndarray, first: int, last: int, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    n, d = x.shape
    scale = np.float32(1.0 / (last - first))
    for block in numba.prange((d + WIDTH - 1) // WIDTH):
        start = block * WIDTH
        width = min(WIDTH, d - start)
        rows = np.empty((n, WIDTH), dtype=np.float32)
        for i in range(n):
            for k in range(width):
                rows[i, k] = x[i, start + k]
        for c in range(len(pairs)):
            low, high = rows[pairs[c, 0]], rows[pairs[c, 1]]
            for k in range(WIDTH):
                a, b = low[k], high[k]
                low[k] = a if a < b else b
                high[k] = b if a < b else a
        total = np.zeros(WIDTH, dtype=np.float32)
        for i in range(first, last):
            for k in range(WIDTH):
                total[k] += rows[i, k] * scale
        for k in range(width):
            out[start + k] = total[k]
