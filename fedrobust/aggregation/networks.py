"""Sorting networks: which rows are compared, in which order, in how many columns at once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CACHE = 2**16  # bytes of a strip that the first-level cache bears, or nearly
FEWEST, MOST = 128, 512  # columns of a strip: shorter loops pay for their start, longer ones spill


def lanes(n: int) -> int:
    """Return how many columns of n rows are sorted together.

    As many as fit the first-level cache, a power of two; where not even ``FEWEST`` do, the strip is
    in the second level anyway, and longer loops pay.
    """
    fitting = CACHE // (4 * n)
    return min(MOST, 2 ** (fitting.bit_length() - 1)) if fitting >= FEWEST else 2 * FEWEST


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


@lru_cache(maxsize=64)
def tiles(n: int, first: int, last: int) -> np.ndarray:
    """Return the network's steps (m, 4): a comparator as (low, high, 0, 0), or three as one.

    (a, b, c, d) stands for the comparators (a, b), (c, d) and then (c, b), which is how odd-even
    merges go on. Three run as one where nothing else touches the four rows in between.
    """
    steps: dict[int, tuple[int, ...]] = {}
    latest: dict[int, int] = {}  # row -> the step that wrote it last
    for number, (low, high) in enumerate(network(n, first, last).tolist()):
        above, below = latest.get(high, -1), latest.get(low, -1)
        x, y = steps.get(above, ()), steps.get(below, ())
        joins = above != below and len(x) == len(y) == 2 and x[1] == high and y[0] == low
        if joins and latest[x[0]] == above and latest[y[1]] == below:
            del steps[above], steps[below]
            steps[number] = (*x, *y)
        else:
            steps[number] = (low, high)
        latest |= dict.fromkeys(steps[number], number)
    rows = [(*step, 0, 0)[:4] for step in steps.values()]
    return np.array(rows, dtype=np.uint64).reshape(-1, 4)  # unsigned: no wrap-around checks
