"""Rules that select updates by their distances or norms, and average what they select.

Each has a twin ``*_weights``: how much every update counts, (n,), adding up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import by_blocks, median, nearest_mean
from fedrobust.aggregation.distances import lowest, nearest_sums, squared_distances


def even(chosen: Tensor, n: int) -> Tensor:
    """Spread weight 1 evenly over the chosen rows."""
    weights = torch.zeros(n, dtype=torch.float64, device=chosen.device)
    weights[chosen] = 1 / len(chosen)
    return weights


def weighted(updates: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the rows; a single row is returned as it is."""
    chosen = weights.nonzero().flatten()
    if len(chosen) == 1 and weights[chosen[0]] == 1:
        return updates[chosen[0]].clone()
    if len(chosen) == len(updates):
        return weights.to(updates.dtype) @ updates
    return weights[chosen].to(updates.dtype) @ updates[chosen]


def krum_scores(squared: Tensor, f: int) -> Tensor:
    """Sum the squared distances to the n - f - 2 nearest others."""
    return nearest_sums(squared, len(squared) - f - 2)


def krum_weights(updates: Tensor, *, f: int) -> Tensor:
    """Select the update of the least score."""
    return even(lowest(krum_scores(squared_distances(updates), f), 1), len(updates))


def krum(updates: Tensor, *, f: int) -> Tensor:
    """Return the update nearest to its n - f - 2 nearest others, by squared distances.

    Raises
    ------
    ValueError
        If ``n < 2 f + 3``.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4.
    """
    return weighted(updates, krum_weights(updates, f=f))


def multi_krum_weights(updates: Tensor, *, f: int, m: int | None = None) -> Tensor:
    """Select the m updates of the least scores."""
    n = len(updates)
    m = n - f if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"multi_krum of {n} updates needs 1 <= m <= {n}, got m={m}")
    return even(lowest(krum_scores(squared_distances(updates), f), m), n)


def multi_krum(updates: Tensor, *, f: int, m: int | None = None) -> Tensor:
    """Average the m updates of the least Krum scores (m = n - f unless given).

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 5 (Multi-Krum).
    """
    return weighted(updates, multi_krum_weights(updates, f=f, m=m))


def bulyan_picks(squared: Tensor, f: int) -> list[int]:
    """Pick n - 2 f rows by repeated Krum on what remains; late picks have at least 1 neighbour."""
    remaining = list(range(len(squared)))
    picks = []
    for _ in range(len(squared) - 2 * f):
        if len(remaining) == 1:
            picks.append(remaining.pop())
            break
        part = squared[remaining][:, remaining]
        scores = nearest_sums(part, max(1, len(remaining) - f - 2))
        picks.append(remaining.pop(int(lowest(scores, 1))))
    return picks


def bulyan_weights(updates: Tensor, *, f: int) -> Tensor:
    """Weigh the selection set evenly: the second phase takes values, not updates."""
    picks = bulyan_picks(squared_distances(updates), f)
    return even(torch.tensor(picks, device=updates.device), len(updates))


def bulyan(updates: Tensor, *, f: int) -> Tensor:
    """Pick n - 2 f updates by repeated Krum, average per coordinate the n - 4 f most central.

    Central means nearest to the median of the picked.

    Raises
    ------
    ValueError
        If ``n < 4 f + 3``.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
    ICML 2018, Algorithm 2. Equally near values: the one picked earlier.
    """
    picks = bulyan_picks(squared_distances(updates), f)
    keep = len(picks) - 2 * f
    return by_blocks(updates, lambda b: nearest_mean(b[picks], median(b[picks]), keep))


def cge_weights(updates: Tensor, *, f: int) -> Tensor:
    """Select the n - f least norms."""
    n = len(updates)
    norms = torch.linalg.vector_norm(updates.double(), dim=1)
    return even(lowest(norms, n - f), n)


def cge(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates of the least norm.

    References
    ----------
    Gupta, Liu, Vaidya, Byzantine Fault-Tolerance with Comparative Gradient Elimination, 2021.
    """
    return weighted(updates, cge_weights(updates, f=f))
