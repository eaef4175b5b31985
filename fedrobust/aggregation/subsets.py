"""Rules that average the best of all subsets of n - f updates: exact, without trying them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from fedrobust.aggregation.distances import TINY, centred_gram, squared_distances
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal

MOST_SUBSETS = 200_000  # that smea looks at
MOST_STEPS = 200_000  # of mda's search: about a second
MARGIN = 1e-9  # relative: a bound must be above the best value by this, to leave a subset out
STEPS = 4  # power steps between two looks at the best bound
ROUNDS = 12  # of these looks
NOISE = 1e-12  # relative to the largest product of a subset
LEAST = 1e-6  # of an image's length: a shorter step is rounding
FEW = 8  # so few subsets that are left are computed exactly


class _Cover:
    """Which rows to leave out, so that no two of the others are far from each other.

    Rows and far pairs are a graph, what is left out a cover of its edges. Sets of rows are bits.
    """

    def __init__(self, n: int, who: str) -> None:
        self.far = [0] * n
        self._who = who
        self._steps = 0

    def fits(self, left: int, budget: int) -> bool:
        """Whether leaving out ``budget`` of the rows ``left`` at most covers all far pairs."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Refusal(f"{self._who}: the search for its subset ended after {MOST_STEPS} steps")
        degrees = [(row & left).bit_count() if left >> i & 1 else 0
                   for i, row in enumerate(self.far)]  # fmt: skip
        most = max(degrees)
        if not most:
            return True
        # Each row that is left out covers ``most`` pairs at most.
        if budget <= 0 or sum(degrees) > 2 * budget * most:
            return False
        row = degrees.index(most)
        # Either this row is left out, or all that are far from it.
        others = self.far[row] & left
        return self.fits(left & ~(1 << row), budget - 1) or (
            most <= budget and self.fits(left & ~others & ~(1 << row), budget - most)
        )


def least_diameter(squared: Tensor, f: int, who: str = "mda") -> list[int]:
    """Return the n - f rows of the least diameter; the lexicographically first on ties.

    The least diameter is one of the distances: it is found by halving their list, and a branching
    over far pairs says whether one can be met. About 2^f steps at most, where there are n choose f
    subsets.

    Parameters
    ----------
    squared
        (n, n) squared distances, symmetric.

    Raises
    ------
    ValueError
        If the search takes more than ``MOST_STEPS`` steps.
    """
    n, table = len(squared), squared.tolist()
    values = sorted({0.0, *(value for row in table for value in row)})
    cover = _Cover(n, f"{who} with f={f} of {n} updates")

    def reached(value: float) -> bool:
        cover.far = [sum(1 << j for j in range(n) if j != i and not row[j] <= value)
                     for i, row in enumerate(table)]  # fmt: skip
        return cover.fits((1 << n) - 1, f)

    low, high = 0, len(values) - 1
    while low < high:
        half = (low + high) // 2
        low, high = (low, half) if reached(values[half]) else (half + 1, high)
    reached(values[low])
    return _first(cover, n, f)


def _first(cover: _Cover, n: int, f: int) -> list[int]:
    """Return the lexicographically first n - f rows of which no two are far: keep whom one can."""
    kept: list[int] = []
    left, budget = (1 << n) - 1, f
    for i in range(n):
        if len(kept) == n - f:
            break
        if not left >> i & 1:
            continue  # far from one that is kept
        others = cover.far[i] & left
        without = left & ~others & ~(1 << i)
        cost = others.bit_count()
        if cost <= budget and cover.fits(without, budget - cost):
            kept, left, budget = [*kept, i], without, budget - cost
        else:
            left, budget = left & ~(1 << i), budget - 1
    return kept


def mda_weights(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates of the least diameter (minimum diameter averaging, Brute).

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or the search takes too long.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
    ICML 2018 (Brute); El Mhamdi et al., 2020 (MDA).
    """
    return even(torch.tensor(least_diameter(squared_distances(updates), f)), len(updates))


def smea_weights(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates whose covariance has the least top eigenvalue (exact).

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or there are too many subsets to search.

    References
    ----------
    Allouah et al., On the Privacy-Robustness-Utility Trilemma in Distributed Learning, ICML 2023
    (smallest maximum eigenvalue averaging). The eigenvalue is that of the centred products, the
    same as the covariance's (divisor n - f).
    """
    n = len(updates)
    count = math.comb(n, f)
    if count > MOST_SUBSETS:
        raise Refusal(
            f"smea with f={f} of {n} updates has {count} subsets, the limit is {MOST_SUBSETS}"
        )
    return even(torch.tensor(least_spread(centred_gram(updates), f)), n)


def top_eigenvalue(gram: Tensor, rows: list[int]) -> float:
    """Return the top eigenvalue of some rows' covariance, from products about any centre."""
    part = gram[rows][:, rows]
    # Centred anew: the products are about one centre for all, the covariance about its own.
    part = part - part.mean(0) - part.mean(1, keepdim=True) + part.mean()
    return float(torch.linalg.eigvalsh(part)[-1]) / len(rows)


def least_spread(gram: Tensor, f: int) -> list[int]:
    """Return the n - f rows of the least top eigenvalue; the lexicographically first on ties.

    Power steps for all subsets at once give a lower bound of each top eigenvalue, the quotient of
    Rayleigh. Subsets whose bound is above a value that another one has are left out; what remains
    after some steps is computed exactly.

    Parameters
    ----------
    gram
        (n, n) products of the rows about any common centre, float64.
    """
    masks = _subsets(len(gram), f)
    if not bool(torch.isfinite(gram).all()):
        return np.flatnonzero(masks[0]).tolist()
    keep, table = len(gram) - f, gram.numpy()
    # What rounding may do to a bound, or to the value itself.
    noise = NOISE * (masks * table.diagonal()).max(1)
    alive, best = np.arange(len(masks)), math.inf
    smallest = shift = _smallest(table)
    vectors = _within(masks * np.random.default_rng(0).standard_normal(len(gram)), masks)
    for _ in range(ROUNDS):
        bounds, vectors = _power(table, masks[alive], vectors, shift)
        candidate = alive[np.argmin(bounds)]
        best = min(best, top_eigenvalue(gram, np.flatnonzero(masks[candidate]).tolist()))
        # In the lower third of what is left, so that the steps lead to the top.
        shift = smallest + (best * keep - smallest) / 3
        stay = bounds / keep <= best * (1 + MARGIN) + noise[alive]
        alive, vectors = alive[stay], vectors[stay]
        if len(alive) <= FEW:
            break
    rows = [np.flatnonzero(masks[i]).tolist() for i in alive]
    # min keeps the first of equals, and the subsets are in lexicographic order.
    return min(rows, key=lambda chosen: top_eigenvalue(gram, chosen))


def _subsets(n: int, f: int) -> np.ndarray:
    """Return all subsets of n - f of n rows in lexicographic order, (count, n) of 0 and 1."""
    out = itertools.chain.from_iterable(itertools.combinations(range(n), f))
    left_out = np.fromiter(out, dtype=np.int64).reshape(math.comb(n, f), f)
    masks = np.ones((math.comb(n, f), n))
    if f:
        np.put_along_axis(masks, left_out, 0.0, axis=1)
    # Who keeps the smallest row leaves it in the complement out: the order is the reverse.
    return masks[::-1]


def _smallest(gram: np.ndarray) -> float:
    """Return the least eigenvalue of all rows' centred products, across the vector of ones."""
    centred = gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean()
    return float(np.linalg.eigvalsh(centred)[:2][-1])


def _within(vectors: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Project each vector to its subset's rows, and there to the vectors that add up to 0."""
    inside = vectors * masks
    return inside - masks * (inside.sum(1) / masks.sum(1))[:, None]


def _power(
    gram: np.ndarray, masks: np.ndarray, vectors: np.ndarray, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Take some power steps; return a lower bound of each top eigenvalue, and the vectors."""
    for _ in range(STEPS):
        images = _within(vectors @ gram, masks)
        moved = images - shift * vectors
        size = np.linalg.norm(moved, axis=1)[:, None]
        # Where the shift is the eigenvalue itself, rounding alone is left of the vector.
        real = size > LEAST * np.linalg.norm(images, axis=1)[:, None] + TINY
        vectors = _within(np.where(real, moved / np.maximum(size, TINY), vectors), masks)
    images = _within(vectors @ gram, masks)
    squares = np.maximum((vectors * vectors).sum(1), TINY)
    return (vectors * images).sum(1) / squares, vectors
