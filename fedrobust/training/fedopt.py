"""Adaptive steps of the server: the second moments of Adagrad, Adam and Yogi.

References
----------
Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Moments = tuple[Tensor, ...]
Square = Callable[[Tensor, Tensor, float], Tensor]  # v, aggregate squared, beta2 -> v


def adagrad_square(before: Tensor, square: Tensor, beta2: float) -> Tensor:
    """Return ``v + g^2``."""
    return before + square


def adam_square(before: Tensor, square: Tensor, beta2: float) -> Tensor:
    """Return ``beta2 v + (1 - beta2) g^2``."""
    return beta2 * before + (1 - beta2) * square


def yogi_square(before: Tensor, square: Tensor, beta2: float) -> Tensor:
    """Return ``v - (1 - beta2) g^2 sign(v - g^2)``."""
    return before - (1 - beta2) * square * torch.sign(before - square)


def direction(
    aggregate: Tensor,
    moments: Moments,
    square: Square,
    *,
    beta1: float,
    beta2: float,
    tau: float,
) -> tuple[Tensor, Moments]:
    """Return ``m / (sqrt(v) + tau)`` and both moments (d,); the first v is tau^2.

    Raises
    ------
    ValueError
        If a setting is out of range, or a second moment overflows: the step would be zero, and
        look harmless.
    """
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and tau > 0):
        raise ValueError(
            f"needs beta1 and beta2 in [0, 1) and tau > 0, got {beta1:g}, {beta2:g} and {tau:g}"
        )
    # tau^2 is the least start that Algorithm 2 allows.
    mean, second = moments or (torch.zeros_like(aggregate), torch.full_like(aggregate, tau**2))
    mean = beta1 * mean + (1 - beta1) * aggregate
    second = square(second, aggregate * aggregate, beta2)
    if not bool(torch.isfinite(second).all()):
        raise ValueError("an adaptive step needs aggregates whose squares are finite")
    return mean / (second.sqrt() + tau), (mean, second)
