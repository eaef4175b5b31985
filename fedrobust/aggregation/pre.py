"""Pre-aggregators: (n, d) -> (m, d), each a mixing of rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.aggregation.distances import TINY, norms, squared_distances


def nnm_mixing(updates: Tensor, *, f: int) -> Tensor:
    """Return the (n, n) mixing matrix of ``nnm``."""
    keep = len(updates) - f
    nearest = squared_distances(updates).sort(dim=1, stable=True).indices[:, :keep]
    mixing = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    return mixing.scatter_(1, nearest, 1 / keep)


def nnm(updates: Tensor, *, f: int) -> Tensor:
    """Replace each update by the mean of the n - f nearest to it, itself included.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Allouah et al., Fixing by Mixing, AISTATS 2023, Algorithm 2.
    """
    return nnm_mixing(updates, f=f).to(updates) @ updates


def bucketing_mixing(
    updates: Tensor, *, size: int, permute: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Return the (ceil(n / size), n) mixing matrix of ``bucketing``."""
    n = len(updates)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"bucketing needs a whole size of at least 1, got {size!r}")
    order = torch.randperm(n, generator=generator) if permute else torch.arange(n)
    buckets = order.split(size)
    mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
    for row, bucket in zip(mixing, buckets, strict=True):
        row[bucket] = 1 / len(bucket)
    return mixing


def bucketing(
    updates: Tensor, *, size: int, permute: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Deal the updates into buckets of ``size`` at random, average each bucket.

    References
    ----------
    Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
    ICLR 2022, Algorithm 1.
    """
    mixing = bucketing_mixing(updates, size=size, permute=permute, generator=generator)
    return mixing.to(updates) @ updates


def clip_mixing(updates: Tensor, *, bound: float) -> Tensor:
    """Return the (n, n) diagonal matrix of ``clip``."""
    if not bound > 0:
        raise ValueError(f"clip needs bound > 0, got {bound}")
    lengths = norms(updates)
    return torch.diag((bound / lengths.clamp(min=TINY)).clamp(max=1))


def clip(updates: Tensor, *, bound: float) -> Tensor:
    """Scale every update down to norm ``bound`` at most.

    References
    ----------
    Static clipping; Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.
    """
    return clip_mixing(updates, bound=bound).to(updates) @ updates


def arc_mixing(updates: Tensor, *, f: int) -> Tensor:
    """Return the (n, n) diagonal matrix of ``arc``."""
    n = len(updates)
    lengths = norms(updates)
    clipped = math.floor(2 * f / n * (n - f))
    bound = lengths.sort(descending=True).values[min(clipped, n - 1)]
    return torch.diag((bound / lengths.clamp(min=TINY)).clamp(max=1))


def arc(updates: Tensor, *, f: int) -> Tensor:
    """Clip the k = floor(2 (f / n) (n - f)) largest norms to the (k + 1)-th largest.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Allouah et al., Adaptive Gradient Clipping for Robust Federated Learning, 2024 (ARC).
    """
    return arc_mixing(updates, f=f).to(updates) @ updates
