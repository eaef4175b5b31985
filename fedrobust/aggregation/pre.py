"""Pre-aggregators: (n, d) -> (m, d), each a mixing of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.distances import squared_distances


def nnm_mixing(updates: Tensor, *, f: int) -> Tensor:
    """Return the (n, n) mixing matrix of ``nnm``."""
    keep = len(updates) - f
    nearest = squared_distances(updates).sort(dim=1, stable=True).indices[:, :keep]
    mixing = torch.zeros(len(updates), len(updates), dtype=torch.float64, device=updates.device)
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
    return nnm_mixing(updates, f=f).to(updates.dtype) @ updates


def bucketing_mixing(
    updates: Tensor, *, size: int, permute: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Return the (ceil(n / size), n) mixing matrix of ``bucketing``."""
    n = len(updates)
    order = torch.randperm(n, generator=generator) if permute else torch.arange(n)
    buckets = order.split(size)
    mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
    for row, bucket in zip(mixing, buckets, strict=True):
        row[bucket] = 1 / len(bucket)
    return mixing.to(updates.device)


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
    return mixing.to(updates.dtype) @ updates
