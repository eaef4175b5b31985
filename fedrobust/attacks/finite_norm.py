"""The finite-norm attack: the honest mean, moved as far as the rule will follow.

El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
ICML 2018, sections 3.2 (finite norms) and 3.3 (the maximum norm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.attacks.moments import moments, repeat
from fedrobust.attacks.probe import Rule, largest_accepted, prober


def follows(output: Tensor, base: Tensor, direction: Tensor, gamma: float, share: float) -> bool:
    """Say whether the rule let the attackers through at size gamma. An interpretation.

    Its output must have moved along the direction at least as far as the plain mean would
    (``share * gamma``), and further along it than across it. For a rule that selects one vector
    this is: it selected the attackers'.
    """
    moved = output - base
    distance = float(moved @ direction / direction.square().sum())
    across = torch.linalg.vector_norm(moved - distance * direction)
    length = distance * torch.linalg.vector_norm(direction)
    # A thousandth of slack: the plain mean itself comes to share * gamma but for rounding.
    return distance >= share * gamma * (1 - 1e-3) and bool(across <= length)


def finite_norm(
    honest: Tensor,
    *,
    n: int,
    f: int,
    gamma: float | None = None,
    norm: float = 2.0,
    coordinate: int | None = None,
    goal: str = "accepted",
    limit: float = 16.0,
    tolerance: float = 1e-3,
    rule: Rule | None = None,
) -> Tensor:
    """Send mean + gamma * E with the largest gamma that the rule accepts: (h, d) -> (f, d).

    Parameters
    ----------
    gamma
        Size of the shift; None searches it against ``rule``: a scan by doubling (the accepted
        sizes need not be one interval), then bisection.
    norm
        Finite: E is one coordinate. ``inf``: E is all ones.
    coordinate
        Which one; None takes the coordinate of largest standard deviation.
    goal
        "accepted" (see ``follows``), or "deviation": the scanned size that moves the rule's
        output furthest from the honest mean.
    limit
        Largest size tried, in honest radii max ||x_i - mean||: no gamma is too large for the mean.
    tolerance
        Relative precision of the bisection.

    Raises
    ------
    ValueError
        If gamma is None and there is no rule; for any other value of a setting.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, ICML 2018, sections 3.2 and 3.3.
    """
    centre, std = moments(honest)
    direction = torch.ones_like(centre)
    if math.isfinite(norm):
        where = int(std.argmax()) if coordinate is None else coordinate
        if not 0 <= where < centre.numel():
            raise ValueError(f"finite_norm needs a coordinate below {centre.numel()}, got {where}")
        direction = torch.zeros_like(centre)
        direction[where] = 1.0
    if gamma is None:
        gamma = search(honest, centre, direction, rule, n, f, goal, limit, tolerance)
    if not math.isfinite(gamma):
        raise ValueError(f"finite_norm needs a finite gamma, got {gamma}")
    return repeat(centre + gamma * direction, f, honest)


def search(
    honest: Tensor,
    centre: Tensor,
    direction: Tensor,
    rule: Rule | None,
    n: int,
    f: int,
    goal: str,
    limit: float,
    tolerance: float,
) -> float:
    """Return the gamma to use against the rule."""
    if goal not in ("accepted", "deviation"):
        raise ValueError(f"finite_norm needs goal='accepted' or 'deviation', got {goal!r}")
    if not (limit > 0 and math.isfinite(limit) and 0 < tolerance < 1):
        raise ValueError(
            f"finite_norm needs limit > 0 and 0 < tolerance < 1, got {limit}, {tolerance}"
        )
    probe = prober(rule, honest, f, "finite_norm")
    # Row by row: a float64 copy of all rows would double or treble the memory.
    radius = max(float(torch.linalg.vector_norm(x.double() - centre)) for x in honest)
    scale = radius / float(torch.linalg.vector_norm(direction))
    if goal == "deviation":
        sizes = [scale * limit * 2.0**-k for k in range(15)]
        moved = [float((probe(centre + g * direction) - centre).norm()) for g in sizes]
        # NaN in max() would make the answer depend on the order: it counts as the worst.
        return sizes[max(range(15), key=lambda k: moved[k] if math.isfinite(moved[k]) else -1.0)]
    base = probe(centre)
    share = f / (honest.shape[0] + f)

    def accepted(gamma: float) -> bool:
        output = probe(centre + gamma * direction)
        # Equal updates have radius 0, and every size is 0: a shift of nothing always "follows".
        return gamma > 0 and follows(output, base, direction, gamma, share)

    return largest_accepted(accepted, scale=scale, limit=limit, tolerance=tolerance)
