"""What an attack achieved in a round, as numbers for the report."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.attacks.moments import moments, own_blocks

BLOCK = 1 << 20  # values of a block that is read at once
LANES = 256  # columns: as many, or a multiple, are summed as in the whole matrix, to the bit


@dataclass(frozen=True)
class Impact:
    """How far the aggregate is from the honest mean.

    Attributes
    ----------
    deviation
        ||aggregate - honest mean|| over the honest spread; inf if the spread is 0.
    cosine
        Between the aggregate and the honest mean, in [-1, 1]; 0 if one of them is zero.
    """

    deviation: float
    cosine: float


def spread(updates: Tensor, rows: Tensor | None = None) -> float:
    """Root mean squared distance of the honest updates (h, d) from their mean.

    Parameters
    ----------
    rows
        Which of the rows are honest, (h,); all unless given. No matrix of them is made.
    """
    h = updates.shape[0] if rows is None else len(rows)
    total = torch.zeros((), dtype=torch.float64, device=updates.device)
    for _, block in own_blocks(updates, rows):
        total += block.sub_(block.mean(dim=0)).square_().sum()
    return (float(total) / h) ** 0.5


def mean_of(updates: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of some rows, (d,), as ``updates[rows].mean(0)`` without that matrix."""
    width = max(LANES, BLOCK // max(1, len(rows)) // LANES * LANES)
    return torch.cat([block[rows].mean(0) for block in updates.split(width, dim=1)])


def impact(aggregate: Tensor, honest_mean: Tensor, *, spread: float) -> Impact:
    """Compare an aggregate with the mean of the honest updates, (d,) each.

    Parameters
    ----------
    spread
        Of the honest updates, see ``spread``.

    Raises
    ------
    ValueError
        If the shapes differ or the spread is negative.
    """
    if aggregate.shape != honest_mean.shape or not spread >= 0:
        shapes = f"{tuple(aggregate.shape)} and {tuple(honest_mean.shape)}"
        raise ValueError(f"impact needs equal shapes and spread >= 0, got {shapes}, {spread}")
    sent, goal = aggregate.double(), honest_mean.double()
    moved = float(torch.linalg.vector_norm(sent - goal))
    norms = float(torch.linalg.vector_norm(sent) * torch.linalg.vector_norm(goal))
    # Rounding may leave [-1, 1] by a digit, and an arccosine of that is NaN.
    cosine = max(-1.0, min(1.0, float(sent @ goal) / norms)) if norms > 0 else 0.0
    if spread == 0:
        # Equal honest updates: any other aggregate is infinitely far, in units of a spread of 0.
        return Impact(0.0 if moved == 0 else float("inf"), cosine)
    return Impact(moved / spread, cosine)


def bypass(weights: Tensor, malicious: Tensor) -> float:
    """Share of a rule's total weight that malicious rows got: in [0, 1], f / n for the mean.

    Parameters
    ----------
    weights
        (n,), not negative; a selection is 0 and 1. All zero gives 0.
    malicious
        (n,) bool.

    Raises
    ------
    ValueError
        If the shapes differ, or a weight is negative or not finite.
    """
    if weights.shape != malicious.shape or malicious.dtype != torch.bool:
        raise ValueError(
            "bypass needs (n,) weights and a bool mask, got "
            f"{tuple(weights.shape)} and {tuple(malicious.shape)} {malicious.dtype}"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("bypass needs finite weights that are not negative")
    # float64: n float32 shares of 1 / n need not sum to 1.
    total = float(weights.double().sum())
    return float(weights[malicious].double().sum()) / total if total > 0 else 0.0


def flippable(honest: Tensor, z: float) -> float:
    """Fraction of coordinates whose sign z standard deviations can flip: |mean| < z * std.

    References
    ----------
    Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019, figure 2 (z in 0.5, 1, 2).
    """
    if not z >= 0:
        raise ValueError(f"flippable needs z >= 0, got {z}")
    centre, std = moments(honest)
    return float((centre.abs() < z * std).double().mean())
