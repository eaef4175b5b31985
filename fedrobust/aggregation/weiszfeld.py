"""The geometric median of rows from their products alone."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fedrobust.aggregation.distances import TINY, squared_from, squared_to_mixture
from fedrobust.aggregation.selection import even

PATIENCE = 100  # of Weiszfeld's steps, after which a median is sought beside a row, or by Newton's
NEWTON_STEPS = 50


def inverse(distances: Tensor, floor: float, shares: Tensor | None = None) -> Tensor:
    """Return weights 1 / max(floor, distance), times the clients' shares, adding up to 1."""
    weights = 1 / distances.clamp(min=floor)
    if shares is not None:
        weights = weights * shares
    return weights / weights.sum()


def weiszfeld(
    gram: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    who: str,
    shares: Tensor | None = None,
) -> Tensor:
    """Return the geometric median of n rows as weights (n,), from the products of the rows.

    The median is a weighted mean of the rows, so that its distances need no row: a step costs n^2
    operations, not n d. It starts from weights that fall with each row's median distance. Where a
    row is the median itself, or close beside it, the steps become ever smaller: that row is then
    found by its condition, and a median beside it by Newton's steps.

    Warns
    -----
    RuntimeWarning
        If the steps end before they stand still.
    """
    weights = inverse(squared_from(gram).sqrt().median(0).values, TINY, shares)
    for count in range(1, max_iterations + 1):
        distances = squared_to_mixture(gram, weights).sqrt()
        moved = inverse(distances, TINY, shares)
        step = moved - weights
        weights = moved
        scale = 1 / (1 / distances.clamp(min=TINY)).mean()
        moved_by = (step @ gram @ step).clamp(min=0).sqrt()
        if moved_by <= tolerance * scale:
            return weights
        if count == min(PATIENCE, max_iterations):
            row = int(distances.argmin())
            if is_median(gram, row, shares):
                return even(torch.tensor([row]), len(gram))
        if count == PATIENCE:
            found = newton(gram, weights, tolerance, shares)
            if found is not None:
                return found
    warnings.warn(
        f"{who} has not converged after {max_iterations} steps: the last one was"
        f" {float(moved_by / scale):.1e} of the mean distance, the tolerance is {tolerance:.1e}",
        RuntimeWarning,
        stacklevel=2,
    )
    return weights


def newton(gram: Tensor, weights: Tensor, tolerance: float, shares: Tensor | None) -> Tensor | None:
    """Return the weights at which Newton's steps stand still, halved until the sum falls; or None.

    The sum of distances is smooth and strictly convex away from the rows (unless all are on one
    line), and the rows' own coordinates, at most n of them, follow from their products.
    """
    values, vectors = torch.linalg.eigh(gram)
    rows = vectors * values.clamp(min=0).sqrt()
    each = torch.ones_like(weights) if shares is None else shares * len(shares)
    centre = weights @ rows
    for _ in range(NEWTON_STEPS):
        step = newton_step(rows, centre, each)
        share = descent(rows, centre, step, each)
        if share is None:
            return None
        centre = centre - share * step
        distances = (centre - rows).norm(dim=1)
        scale = 1 / (1 / distances.clamp(min=TINY)).mean()
        if share * step.norm() <= tolerance * scale:
            return inverse(distances, TINY, shares)
    return None


def newton_step(rows: Tensor, centre: Tensor, each: Tensor) -> Tensor:
    """Return the inverse Hessian of the weighted sum of distances, times its gradient."""
    offsets = centre - rows
    distances = offsets.norm(dim=1).clamp(min=TINY)
    pulls = each / distances
    bent = offsets * (each / distances**3).unsqueeze(1)
    # A trace of the identity: rows on one line bend the sum in no other direction.
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    hessian = (1 + 1e-12) * pulls.sum() * identity - bent.T @ offsets
    return torch.linalg.solve(hessian, pulls @ offsets)


def descent(rows: Tensor, centre: Tensor, step: Tensor, each: Tensor) -> float | None:
    """Return the greatest of 1, 1/2, 1/4, ... by which a step does not raise the sum, or None."""
    now = sum_of_distances(rows, centre, each)
    share = 1.0
    while share > 1e-9:
        if sum_of_distances(rows, centre - share * step, each) <= now:
            return share
        share /= 2
    return None


def sum_of_distances(rows: Tensor, centre: Tensor, each: Tensor) -> float:
    """Return the weighted sum of the rows' distances from a centre."""
    return float(each @ (centre - rows).norm(dim=1))


def is_median(gram: Tensor, row: int, shares: Tensor | None = None) -> bool:
    """Whether a row is the geometric median: the others' unit pulls do not outweigh its own.

    References
    ----------
    Vardi, Zhang, The multivariate L1-median and associated data depth, PNAS 2000, equation 2.6:
    |sum over j of (x_j - x_k) / |x_j - x_k|| is at most the number of rows equal to x_k.
    """
    offsets = gram - gram[row][None, :] - gram[:, row][:, None] + gram[row, row]
    distances = offsets.diagonal().clamp(min=0).sqrt()
    # Distances from products of float64 are known to 1e-8 of the greatest.
    apart = distances > 1e-7 * distances.max()
    each = torch.ones_like(distances) if shares is None else shares * len(shares)
    pulls = torch.where(apart, each / distances.clamp(min=TINY), 0.0)
    held = float(each[~apart].sum())
    return bool((pulls @ offsets @ pulls).clamp(min=0).sqrt() <= held + 1e-9)
