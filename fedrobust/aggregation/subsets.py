"""Rules that search all subsets of n - f updates: exact, and only for few clients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.aggregation.distances import centred_gram, squared_distances
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal

MOST_SUBSETS = 200_000


def best_subset(n: int, f: int, cost: Callable[[list[int]], float], name: str) -> list[int]:
    """Return the n - f rows of the least cost; the lexicographically first on ties.

    Raises
    ------
    ValueError
        If there are more than ``MOST_SUBSETS`` subsets.
    """
    count = math.comb(n, f)
    if count > MOST_SUBSETS:
        raise Refusal(
            f"{name} with f={f} of {n} updates has {count} subsets, the limit is {MOST_SUBSETS}"
        )
    # min keeps the first of equals, and combinations come in lexicographic order.
    return min((list(s) for s in itertools.combinations(range(n), n - f)), key=cost)


def mda_weights(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates of the least diameter (minimum diameter averaging, Brute).

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or there are too many subsets to search.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
    ICML 2018 (Brute); El Mhamdi et al., 2020 (MDA).
    """
    squared = squared_distances(updates)
    n = len(updates)

    def diameter(rows: list[int]) -> float:
        return float(squared[rows][:, rows].max())

    return even(torch.tensor(best_subset(n, f, diameter, "mda")), n)


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
    gram = centred_gram(updates)
    n = len(updates)

    def top_eigenvalue(rows: list[int]) -> float:
        part = gram[rows][:, rows]
        # Centred anew: the products are about one centre for all, the covariance about its own.
        part = part - part.mean(0) - part.mean(1, keepdim=True) + part.mean()
        return float(torch.linalg.eigvalsh(part)[-1]) / len(rows)

    return even(torch.tensor(best_subset(n, f, top_eigenvalue, "smea")), n)
