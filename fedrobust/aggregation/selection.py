"""Rules that select updates by their distances or norms, and average what they select.

Each has a twin ``*_weights``: how much every update counts, (n,), adding up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import by_blocks, median, nearest_mean
from fedrobust.aggregation.distances import lowest, nearest_sums, squared_distances
from fedrobust.spec import suggest


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
    if variant not in KRUM_VARIANTS:
        hint = suggest(variant, list(KRUM_VARIANTS))
        raise ValueError(f"unknown variant {variant!r} of krum; {hint}")
    power, more = KRUM_VARIANTS[variant]
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
    updates: Tensor, *, f: int, m: int | None = None, variant: str = "paper"
) -> Tensor:
    """Select the m updates of the least scores."""
    n = len(updates)
    m = n - f if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"multi_krum of {n} updates needs 1 <= m <= {n}, got m={m}")
    return even(lowest(krum_scores(squared_distances(updates), f, variant), m), n)


def multi_krum(updates: Tensor, *, f: int, m: int | None = None, variant: str = "paper") -> Tensor:
    """Average the m updates of the least Krum scores (m = n - f unless given).

    Parameters
    ----------
    m
        1 is Krum, n the mean; ByzFL takes n - f, EPFL's code n - f - 2.
    variant
        Score, see ``krum``.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 5 (Multi-Krum).
    """
    return weighted(updates, multi_krum_weights(updates, f=f, m=m, variant=variant))


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
