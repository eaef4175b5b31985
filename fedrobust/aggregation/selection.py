"""Rules that select updates by their distances or norms, and average what they select.

Each function returns how much every update counts, (n,), adding up to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.columns import chosen_variant
from fedrobust.aggregation.distances import lowest, nearest_sums, norms, squared_distances
from fedrobust.ranges import truth, whole


def even(chosen: Tensor, n: int) -> Tensor:
    """Spread weight 1 evenly over the chosen rows: (n,), on the CPU."""
    weights = torch.zeros(n, dtype=torch.float64)
    weights[chosen] = 1 / len(chosen)
    return weights


def papers_bound(f: int) -> int:
    """Return 2 f + 3."""
    return 2 * f + 3


# One name, many rules: variant -> power of the distance, neighbours beyond the n - f - 2 nearest,
# and the fewest updates that its library takes.
KRUM_VARIANTS: dict[str, tuple[float, int, Callable[[int], int]]] = {
    "paper": (2.0, 0, papers_bound),
    "byzfl": (2.0, 1, lambda f: max(f + 2, 2 * f + 1)),
    "byzpy": (2.0, 1, lambda f: f + 2),
    "flower": (2.0, 0, lambda f: 1),
    "epfl": (1.0, 1, papers_bound),
    "alie_code": (1.0, 2, lambda f: 2 * f + 1),
    "plain": (1.0, 0, papers_bound),
    "fourth_power": (4.0, 0, lambda f: 2 * f + 2),
    "plato": (2.0, -1, papers_bound),
}


def krum_minimum(settings: dict[str, Any]) -> int:
    """Return the fewest updates: 2 f + 3 in the paper, fewer in some libraries."""
    _, _, fewest = chosen_variant(KRUM_VARIANTS, settings.get("variant", "paper"), "krum")
    return fewest(settings["f"])


def multi_krum_minimum(settings: dict[str, Any]) -> int:
    """Return Krum's fewest updates, or m."""
    m = settings.get("m")
    return max(krum_minimum(settings), 1 if m is None else whole(m, "multi_krum", "m", low=1))


def krum_scores(squared: Tensor, f: int, variant: str = "paper") -> Tensor:
    """Sum the distances to the nearest others; which power and how many says the variant."""
    power, more, _ = chosen_variant(KRUM_VARIANTS, variant, "krum")
    # One at least and not itself: some variants take as few as f + 2 updates, or any number.
    neighbours = min(max(1, len(squared) - f - 2 + more), len(squared) - 1)
    # What is given is squared already: power 1 is the root of it.
    return nearest_sums(squared if power == 2 else squared.pow(power / 2), neighbours)


def krum_weights(updates: Tensor, *, f: int, variant: str = "paper") -> Tensor:
    """Return the update nearest to its n - f - 2 nearest others, by squared distances.

    Parameters
    ----------
    variant
        "paper"; or a field's score under the same name: "byzfl" squared, n - f - 1 others; "epfl"
        plain distances, n - f - 1 others; "alie_code" plain, n - f others (the program of Baruch
        et al.); "plain" plain, n - f - 2; "fourth_power" squares squared (fedlib); "plato" squared,
        n - f - 3. Each takes as few updates as its library does: "byzfl" 2 f + 1, "byzpy" (the same
        score) f + 2, "flower" (the paper's score) any number, "alie_code" 2 f + 1, "fourth_power"
        2 f + 2.

    Raises
    ------
    ValueError
        If ``n < 2 f + 3`` (for the variants: fewer than their library takes), or for an unknown
        variant.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4.
    """
    scores = krum_scores(squared_distances(updates), f, variant)
    return even(lowest(scores, 1), len(updates))


def multi_krum_weights(
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
        If ``n < 2 f + 3`` (variants: see ``krum``), for m outside 1..n, or for an unknown variant.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 5 (Multi-Krum).
    """
    n = len(updates)
    m = n - f if m is None else whole(m, f"multi_krum of {n} updates", "m", low=1, high=n)
    truth(iterative, "multi_krum", "iterative")
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


def cge_weights(updates: Tensor, *, f: int) -> Tensor:
    """Average the n - f updates of the least norm.

    References
    ----------
    Gupta, Liu, Vaidya, Byzantine Fault-Tolerance with Comparative Gradient Elimination, 2021.
    """
    n = len(updates)
    return even(lowest(norms(updates), n - f), n)
