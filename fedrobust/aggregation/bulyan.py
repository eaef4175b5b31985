"""Bulyan: updates picked by Krum again and again, then averaged near their median."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.aggregation.columns import by_blocks, chosen_variant, nearest_mean, nearest_to_median
from fedrobust.aggregation.distances import lowest, squared_distances
from fedrobust.aggregation.selection import krum_scores


def bulyan_picks(squared: Tensor, f: int, more: int = 0) -> Tensor:
    """Pick n - 2 f rows by repeated Krum on what remains, in order of picking.

    Each is scored by its n - f - 2 + ``more`` nearest, n being what remains. Late picks have at
    least 1 neighbour; ties go to the lowest index.
    """
    # -1 puts each row itself first, before its twins at distance 0, where it is cut off.
    order = squared.clone().fill_diagonal_(-1).sort(dim=1, stable=True).indices[:, 1:]
    picks = _picks(squared.numpy(), order.numpy(), f, more)
    return torch.from_numpy(picks)


@numba.njit(cache=True)
def _picks(
    squared: np.ndarray, order: np.ndarray, f: int, more: int
) -> np.ndarray:  # pragma: no cover
    n = len(squared)
    alive = np.ones(n, dtype=np.bool_)
    picks = np.empty(n - 2 * f, dtype=np.int64)
    for turn in range(n - 2 * f):
        neighbours = min(max(1, n - turn - f - 2 + more), n - turn - 1)
        best, least = -1, np.inf
        for i in range(n):
            if not alive[i]:
                continue
            score, seen, at = 0.0, 0, 0
            while seen < neighbours:  # the row's nearest first, those already picked left out
                j = order[i, at]
                at += 1
                if alive[j]:
                    score += squared[i, j]
                    seen += 1
            if best < 0 or score < least:
                best, least = i, score
        picks[turn] = best
        alive[best] = False
    return picks


def one_pass_picks(squared: Tensor, f: int) -> Tensor:
    """Pick the n - 2 f rows of the least Krum scores, scored once."""
    return lowest(krum_scores(squared, f), len(squared) - 2 * f)


def alie_code_picks(squared: Tensor, f: int) -> Tensor:
    """Pick n - 2 f rows by the repeated Krum of ALIE's program: plain distances, n - f others."""
    return bulyan_picks(squared.sqrt(), f, more=2)


PICKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "paper": bulyan_picks,
    "alie_code": alie_code_picks,
    "one_pass": one_pass_picks,
}


def epfl_mixing(squared: Tensor, f: int) -> Tensor:
    """Return the (n - 2 f - 2, n) averages that EPFL's program selects instead of updates.

    Scores are sums of plain distances to the n - f - 2 nearest. Turn i averages the n - f - 2 - i
    least scores; then the least leaves, and its distance leaves the scores in which it counted.
    """
    n, neighbours = len(squared), len(squared) - f - 2
    away = squared.sqrt().fill_diagonal_(float("inf"))
    near = torch.zeros_like(away, dtype=torch.bool)
    near.scatter_(1, away.sort(dim=1, stable=True).indices[:, :neighbours], True)
    counted = torch.where(near, away, 0.0)
    scores = counted.sum(1)
    mixing = torch.zeros(n - 2 * f - 2, n, dtype=torch.float64)
    for turn, row in enumerate(mixing):
        best = lowest(scores, neighbours - turn)
        row[best] = 1 / len(best)
        scores = scores - counted[:, best[0]]
        scores[best[0]] = float("inf")
    return mixing


def bulyan(updates: Tensor, *, f: int, variant: str = "paper") -> Tensor:
    """Pick n - 2 f updates by repeated Krum, average per coordinate the n - 4 f most central.

    Central means nearest to the median of the picked.

    Parameters
    ----------
    variant
        "paper"; "epfl": n - 2 f - 2 Multi-Krum averages of falling size in place of updates, plain
        distances, the lower median, n - 4 f - 2 values (the program of El Mhamdi et al.);
        "alie_code": picks by Krum's variant of that name, n - 4 f - 1 values (the program of Baruch
        et al., NeurIPS 2019);
        "one_pass": the n - 2 f least Krum scores of a single ranking (Flower's message API).

    Raises
    ------
    ValueError
        If ``n < 4 f + 3``, or for an unknown variant.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
    ICML 2018, Algorithm 2. Equally near values: the one picked earlier.
    """
    n = len(updates)
    squared = squared_distances(updates)
    if variant == "epfl":
        mixing = epfl_mixing(squared, f).to(updates)
        middle = (len(mixing) - 1) // 2
        keep = len(mixing) - 2 * f
        return by_blocks(
            updates, lambda block: nearest_mean(mixing @ block, middle, middle + 1, keep)
        )
    # "epfl" is done above; it is named here so that a misspelling finds it.
    picks = chosen_variant(PICKS | {"epfl": None}, variant, "bulyan")(squared, f)
    return nearest_to_median(updates, n - 4 * f - (variant == "alie_code"), rows=picks)
