"""Squared distances between updates, from one matrix of products of centred rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import blocks, median

LARGEST = 1e15  # products of larger float32 values overflow; no honest update comes near


def centred_gram(updates: Tensor) -> Tensor:
    """Return the (n, n) products of the rows centred on their coordinate-wise median, float64.

    A mean is moved anywhere by one row; the median is not. Blocks of columns are multiplied in the
    updates' own precision and summed in float64; values beyond 1e15 are cut there in float32.
    """
    n = len(updates)
    gram = torch.zeros(n, n, dtype=torch.float64, device=updates.device)
    for block in blocks(updates):
        centred = block - median(block)
        if centred.dtype == torch.float32:
            centred.clamp_(-LARGEST, LARGEST)
        gram += centred @ centred.T
    return gram


def squared_distances(updates: Tensor) -> Tensor:
    """Return (n, n) squared Euclidean distances in float64; symmetric, zero diagonal.

    From centred products: |x|^2 + |y|^2 - 2 x.y of raw rows loses all digits where the rows lie
    close together and far from zero.
    """
    gram = centred_gram(updates)
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp_(min=0)
    squared = (squared + squared.T) / 2
    return squared.fill_diagonal_(0)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` lowest scores; ties go to the lowest index."""
    return scores.sort(stable=True).indices[:count]


def nearest_sums(squared: Tensor, neighbours: int) -> Tensor:
    """Sum, for each row, its ``neighbours`` smallest distances to other rows."""
    others = squared.clone().fill_diagonal_(float("inf"))
    return others.sort(1).values[:, :neighbours].sum(1)
