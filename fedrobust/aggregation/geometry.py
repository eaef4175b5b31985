"""Rules by whole distances: geometric median, RFA, centered clipping, norm clipping."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import median

TINY = 1e-30


def norms_from(updates: Tensor, centre: Tensor) -> Tensor:
    """Return the distance of each row from a centre, (n,), summed in float64."""
    squared = torch.zeros(len(updates), dtype=torch.float64, device=updates.device)
    width = max(1, (1 << 22) // len(updates))
    for rows, part in zip(updates.split(width, 1), centre.split(width), strict=True):
        squared += (rows.double() - part.double()).square_().sum(1)
    return squared.sqrt()


def weiszfeld_weights(updates: Tensor, centre: Tensor, nu: float) -> Tensor:
    """Return the normalised weights 1 / max(nu, distance)."""
    weights = 1 / norms_from(updates, centre).clamp_(min=nu)
    return weights / weights.sum()


def geometric_median(
    updates: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 1000
) -> Tensor:
    """Minimise the sum of distances to the updates, by Weiszfeld's steps until they stand still.

    Parameters
    ----------
    tolerance
        Relative step at which the iteration ends.

    References
    ----------
    Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, 2017, section 1;
    Weiszfeld 1937. Starts from the coordinate-wise median.
    """
    centre = median(updates).double()
    for _ in range(max_iterations):
        weights = weiszfeld_weights(updates, centre, TINY)
        moved = (
            weights @ updates.double()
            if len(updates) * updates.shape[1] < 1 << 24
            else (weights.to(updates.dtype) @ updates).double()
        )
        step = torch.linalg.vector_norm(moved - centre)
        centre = moved
        if step <= tolerance * (1 + torch.linalg.vector_norm(centre)):
            break
    return centre.to(updates.dtype)


def rfa(updates: Tensor, *, iterations: int = 3, nu: float = 1e-6) -> Tensor:
    """Take a few smoothed Weiszfeld steps from the mean.

    References
    ----------
    Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, IEEE TSP 2022,
    Algorithm 2 (R = 3, nu = 1e-6).
    """
    even = updates.new_full((len(updates),), 1 / len(updates))
    centre = even @ updates  # scaled before the sum: huge values may not overflow it
    for _ in range(iterations):
        centre = weiszfeld_weights(updates, centre, nu).to(updates.dtype) @ updates
    return centre


def centered_clipping(
    updates: Tensor, *, tau: float, iterations: int = 1, memory: Tensor | None = None
) -> Tensor:
    """Clip each update's offset from the previous aggregate to norm tau, average, add.

    Parameters
    ----------
    tau
        Clipping radius, > 0.
    memory
        Previous aggregate (d,); zero where None.

    References
    ----------
    Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021,
    Algorithm 2.
    """
    if not tau > 0 or iterations < 1:
        raise ValueError(
            f"clipping needs a radius > 0 and iterations >= 1, got {tau}, {iterations}"
        )
    centre = torch.zeros_like(updates[0]) if memory is None else memory.clone()
    for _ in range(iterations):
        scales = (tau / norms_from(updates, centre).clamp_(min=TINY)).clamp_(max=1)
        weights = (scales / len(updates)).to(updates.dtype)
        centre = centre * (1 - weights.sum()) + weights @ updates
    return centre


def norm_clipping(updates: Tensor, *, bound: float) -> Tensor:
    """Clip each update to norm ``bound``, average.

    References
    ----------
    Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.
    """
    return centered_clipping(updates, tau=bound)
