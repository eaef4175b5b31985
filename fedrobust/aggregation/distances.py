"""Squared distances between updates, from one Gram matrix of centred rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import blocks, median


def squared_distances(updates: Tensor) -> Tensor:
    """Return (n, n) squared Euclidean distances in float64; symmetric, zero diagonal.

    Rows are centred on their coordinate-wise median first: |x|^2 + |y|^2 - 2 x.y of raw rows loses
    all digits where the rows lie close together and far from zero, and a mean is moved anywhere
    by one row. Blocks of columns are summed in float64.
    """
    n = len(updates)
    gram = torch.zeros(n, n, dtype=torch.float64, device=updates.device)
    for block in blocks(updates):
        centred = (block - median(block)).double()
        gram += centred @ centred.T
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
