"""Published robustness coefficients, and the coefficient that a round measured.

A rule F is (f, kappa)-robust if for every set S of n - f of its n updates, with mean m,
|F(x) - m|^2 <= kappa / |S| sum_{i in S} |x_i - m|^2. What the other f rows hold is free. No rule
has a kappa below f / (n - 2 f).

References
----------
Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity, AISTATS 2023, Definition 2, Proposition 6 and Table 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 1 << 17  # values at a time: they stay in the cache

MIXING = "Allouah et al., Fixing by Mixing, AISTATS 2023, Table 1 and appendix 8"
TRILEMMA = (
    "Allouah et al., On the Privacy-Robustness-Utility Trilemma in Distributed Learning, ICML 2023"
)


def _ratio(n: int, f: int) -> float:
    """Return 1 + f / (n - 2 f); infinite where half of the updates may be Byzantine."""
    return 1 + f / (n - 2 * f) if n > 2 * f else math.inf


def least(n: int, f: int) -> float:
    """Return f / (n - 2 f), below which no rule's coefficient can be."""
    return _ratio(n, f) - 1


def median(n: int, f: int) -> float:
    """Return 4 (1 + f / (n - 2 f))^2, of the coordinate-wise and the geometric median."""
    return 4 * _ratio(n, f) ** 2


def trimmed_mean(n: int, f: int) -> float:
    """Return 6 f / (n - 2 f) (1 + f / (n - 2 f))."""
    return 6 * least(n, f) * _ratio(n, f) if f else 0.0


def krum(n: int, f: int) -> float:
    """Return 6 (1 + f / (n - 2 f))."""
    return 6 * _ratio(n, f)


def smea(n: int, f: int) -> float:
    """Return 4 f / (n - f) (1 + f / (n - 2 f))^2.

    Published against the largest eigenvalue of the honest covariance, which its trace (the variance
    meant here) is never below.
    """
    return 4 * f / (n - f) * _ratio(n, f) ** 2 if f else 0.0


def with_nnm(n: int, f: int, kappa: float) -> float:
    """Return 8 f / (n - f) (kappa + 1), of a rule behind nearest-neighbour mixing."""
    return 8 * f / (n - f) * (kappa + 1) if f else 0.0


def measured(aggregate: Tensor, honest: Tensor, *, rows: Tensor | None = None) -> float:
    """Return a round's coefficient: |aggregate - mean|^2 over the variance of the honest updates.

    Parameters
    ----------
    aggregate
        (d,).
    honest
        (h, d), h >= 1; the variance is their mean squared distance from their mean.
    rows
        Which rows of ``honest`` are meant, (h,); all unless given. No matrix of them is made.

    Returns
    -------
    float
        0 where the aggregate is the mean; infinite where it is not and the updates are all equal.
    """
    # In float32 first, without float64 copies of the rows; again where its squares overflow or
    # vanish.
    away, spread = _squares(aggregate, honest, rows, torch.float32)
    if honest.dtype == torch.float64 or not (away < math.inf and 0 < spread < math.inf):
        away, spread = _squares(aggregate, honest, rows, torch.float64)
    if spread > 0:
        return away / spread
    return 0.0 if away == 0 else math.inf


def _squares(
    aggregate: Tensor, honest: Tensor, chosen: Tensor | None, dtype: torch.dtype
) -> tuple[float, float]:
    """Return the squared distance of the aggregate from the mean, and the rows' variance.

    Block by block, so that no second matrix is made. What the mean of each block misses by rounding
    is taken from the offsets: the rows may be close together and far from zero.
    """
    away = spread = 0.0
    h = len(honest) if chosen is None else len(chosen)
    width = max(1, BLOCK // h)
    for block, part in zip(honest.split(width, 1), aggregate.split(width), strict=True):
        own = block.to(dtype, copy=True) if chosen is None else block[chosen].to(dtype)
        centre = own.mean(0)
        offsets = own.sub_(centre)
        rest = offsets.mean(0)
        spread += float(offsets.sub_(rest).square_().sum(dtype=torch.float64)) / h
        away += float((part.double() - centre.double() - rest.double()).square().sum())
    return away, spread
