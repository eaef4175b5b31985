"""Pre-aggregators: (n, d) -> (m, d), each as the matrix (m, n) that mixes the rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.distances import clipping, lowest, norms, norms_from, squared_distances
from fedrobust.aggregation.weighting import bearable, slack
from fedrobust.ranges import real, truth, whole


def nnm_mixing(updates: Tensor, *, f: int, weights: Tensor | None = None) -> Tensor:
    """Replace each update by the mean of the n - f nearest to it, itself included.

    Parameters
    ----------
    weights
        Shares (n,) of the clients, adding up to 1: the weighted mean of the nearest that hold all
        but the share of the f heaviest, the last of them in part.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or if the f heaviest clients hold half of the weight or more.

    References
    ----------
    Allouah et al., Fixing by Mixing, AISTATS 2023, Algorithm 2. The weighted form is this
    project's.
    """
    keep = len(updates) - f
    order = squared_distances(updates).sort(dim=1, stable=True).indices
    if weights is not None:
        room = 1 - bearable(weights, f, "nnm")
        mass = weights[order]
        # From the nearest on each takes its whole share, until the room is full; the last a part.
        taken = torch.minimum(mass, (room - (mass.cumsum(1) - mass)).clamp(min=0))
        taken = torch.where(taken > slack(len(weights)), taken, 0.0)
        return torch.zeros_like(taken).scatter_(1, order, taken / room)
    nearest = order[:, :keep]
    mixing = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    return mixing.scatter_(1, nearest, 1 / keep)


def bucketing_mixing(
    updates: Tensor, *, size: int, permute: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Deal the updates into buckets of ``size`` at random, average each bucket.

    References
    ----------
    Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
    ICLR 2022, Algorithm 1.
    """
    n = len(updates)
    whole(size, "bucketing", "size", low=1)
    truth(permute, "bucketing", "permute")
    order = torch.randperm(n, generator=generator) if permute else torch.arange(n)
    buckets = order.split(size)
    mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
    for row, bucket in zip(mixing, buckets, strict=True):
        row[bucket] = 1 / len(bucket)
    return mixing


def clip_mixing(updates: Tensor, *, bound: float) -> Tensor:
    """Scale every update down to norm ``bound`` at most.

    References
    ----------
    Static clipping; Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.
    """
    real(bound, "clip", "bound", above=0)
    return torch.diag(clipping(norms(updates), bound))


def arc_mixing(updates: Tensor, *, f: int) -> Tensor:
    """Clip the k = floor(2 (f / n) (n - f)) largest norms to the (k + 1)-th largest.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Allouah et al., Adaptive Gradient Clipping for Robust Federated Learning, 2024 (ARC).
    """
    n = len(updates)
    lengths = norms(updates)
    clipped = math.floor(2 * f / n * (n - f))
    # n - 1 for safety alone: 2 f (n - f) / n is n / 2 at most.
    bound = lengths.sort(descending=True).values[min(clipped, n - 1)]
    return torch.diag(clipping(lengths, bound))


def foundation_mixing(updates: Tensor, *, synthetic: int | None = None) -> Tensor:
    """Add copies of the update that is farthest from both extremes of all coordinates.

    The score of an update is its distance from the coordinate-wise largest or smallest values,
    whichever is nearer; the update of the highest score (of equal ones the first) is repeated. A
    median or trimmed mean then has a majority to lean on.

    Parameters
    ----------
    synthetic
        How many copies; half as many as there are updates unless given.

    References
    ----------
    Fang et al., Do We Really Need to Design New Byzantine-robust Aggregation Rules?, NDSS 2025,
    Algorithm 1 (FoundationFL). With the trimmed mean or the median behind it.
    """
    n = len(updates)
    copies = copies_of(n, synthetic)
    extremes = (updates.amax(0), updates.amin(0))
    scores = torch.minimum(*(norms_from(updates, extreme) for extreme in extremes))
    chosen = torch.zeros(n, dtype=torch.float64)
    chosen[lowest(-scores, 1)] = 1
    return torch.cat([torch.eye(n, dtype=torch.float64), chosen.expand(copies, -1)])


def copies_of(n: int, synthetic: Any) -> int:
    """Return how many synthetic updates ``foundation`` adds to n."""
    return n // 2 if synthetic is None else whole(synthetic, "foundation", "synthetic")


def buckets(n: int, settings: dict[str, Any]) -> int:
    """Return how many rows ``bucketing`` leaves of n."""
    return -(-n // whole(settings["size"], "bucketing", "size", low=1))
