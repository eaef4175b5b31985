"""Rules that select updates by their distances or norms, and average what they select.

Each has a twin ``*_weights``: how much every update counts, (n,), adding up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import chosen_variant
from fedrobust.aggregation.distances import lowest, nearest_sums, norms, squared_distances


def even(chosen: Tensor, n: int) -> Tensor:
    """Spread weight 1 evenly over the chosen rows: (n,), on the CPU."""
    weights = torch.zeros(n, dtype=torch.float64)
    weights[chosen] = 1 / len(chosen)
    return weights


def weighted(updates: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the rows; a single row is returned as it is."""
    chosen = weights.nonzero().flatten()
    if len(chosen) == 1 and weights[chosen[0]] == 1:
        return updates[chosen[0]].clone()
    return weights.to(updates) @ updates


# One name, six rules: variant -> (power of the distance, neighbours beyond the n - f - 2 nearest).
KRUM_VARIANTS = {
    "paper": (2.0, 0),
    "byzfl": (2.0, 1),
    "epfl": (1.0, 1),
    "alie_code": (1.0, 2),
    "plain": (1.0, 0),
    "fourth_power": (4.0, 0),
    "plato": (2.0, -1),
}


def krum_scores(squared: Tensor, f: int, variant: str = "paper") -> Tensor:
    """Sum the distances to the nearest others; which power and how many says the variant."""
    power, more = chosen_variant(KRUM_VARIANTS, variant, "krum")
    neighbours = min(max(1, len(squared) - f - 2 + more), len(squared) - 1)
    return nearest_sums(squared if power == 2 else squared.pow(power / 2), neighbours)


def krum_weights(updates: Tensor, *, f: int, variant: str = "paper") -> Tensor:
    """Select the update of the least score."""
    scores = krum_scores(squared_distances(updates), f, variant)
    return even(lowest(scores, 1), len(updates))


def krum(updates: Tensor, *, f: int, variant: str = "paper") -> Tensor:
    """Return the update nearest to its n - f - 2 nearest others, by squared distances.

    Parameters
    ----------
    variant
        "paper"; or a field's score under the same name: "byzfl" squared, n - f - 1 others; "epfl"
        plain distances, n - f - 1 others; "alie_code" plain, n - f others (the program of Baruch
        et al.); "plain" plain, n - f - 2; "fourth_power" squares squared (fedlib); "plato" squared,
        n - f - 3.

    Raises
    ------
    ValueError
        If ``n < 2 f + 3``, or for an unknown variant.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4.
    """
    return weighted(updates, krum_weights(updates, f=f, variant=variant))


def multi_krum_weights(
    updates: Tensor,
    *,
    f: int,
    m: int | None = None,
    variant: str = "paper",
    iterative: bool = False,
) -> Tensor:
    """Select the m updates of the least scores."""
    n = len(updates)
    m = n - f if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"multi_krum of {n} updates needs 1 <= m <= {n}, got m={m}")
    squared = squared_distances(updates)
    if not iterative:
        return even(lowest(krum_scores(squared, f, variant), m), n)
    remaining = torch.arange(n)
    chosen = []
    for _ in range(m):
        scores = krum_scores(squared[remaining][:, remaining], f, variant)
        winner = int(lowest(scores, 1))
        chosen.append(int(remaining[winner]))
        remaining = torch.cat([remaining[:winner], remaining[winner + 1 :]])
    return even(torch.tensor(chosen), n)


def multi_krum(
    updates: Tensor,
    *,
    f: int,
    m: int | None = None,
    variant: str = "paper",
    iterative: bool = False,
) -> Tensor:
    """Average the m updates of the least Krum scores (m = n - f unless given).

    Parameters
    ----------
    m
        1 is Krum, n the mean; ByzFL takes n - f, EPFL's code n - f - 2.
    variant
        Score, see ``krum``.
    iterative
        Whether the scores are taken anew among the rest after each choice (the program of
        Shejwalkar and Houmansadr, with m = n - 2 f - 2).

    Raises
    ------
    ValueError
        If ``n < 2 f + 3``, for m outside 1..n, or for an unknown variant.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 5 (Multi-Krum).
    """
    weights = multi_krum_weights(updates, f=f, m=m, variant=variant, iterative=iterative)
    return weighted(updates, weights)


def cge_weights(updates: Tensor, *, f: int) -> Tensor:
    """Select the n - f least norms."""
    n = len(updates)
    return even(lowest(norms(updates), n - f), n)


def cge(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates of the least norm.

    References
    ----------
    Gupta, Liu, Vaidya, Byzantine Fault-Tolerance with Comparative Gradient Elimination, 2021.
    """
    return weighted(updates, cge_weights(updates, f=f))
