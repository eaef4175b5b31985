"""Fang's attacks: push every coordinate against its benign direction, past a known rule.

Fang, Cao, Jia, Gong, Local Model Poisoning Attacks to Byzantine-Robust Federated Learning,
USENIX Security 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.attacks.moments import along, empty_rows, mean, moments, repeat, squared_distances
from fedrobust.attacks.probe import draws, uniform
from fedrobust.spec import suggest

TARGETS = ("trimmed_mean", "median", "krum")
# The threshold at which the paper gives up halving lambda.
SMALLEST = 1e-5


def benign_sign(centre: Tensor) -> Tensor:
    """Return the sign of the mean, (d,), with +1 at 0."""
    return torch.where(centre < 0, -1.0, 1.0).to(centre)


def beyond(value: Tensor, b: float, upwards: Tensor) -> tuple[Tensor, Tensor]:
    """Return the interval next to an extreme value, b times as far on its outer side."""
    grows = (value > 0) == upwards
    # An extreme value of exactly 0 has only itself: 0 * b = 0 / b = 0.
    other = torch.where(grows, value * b, value / b)
    return torch.minimum(value, other), torch.maximum(value, other)


def full_interval(honest: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """Return, per coordinate, the interval just outside all honest values."""
    down = benign_sign(mean(honest)) > 0
    extreme = torch.where(down, honest.min(dim=0).values, honest.max(dim=0).values).double()
    return beyond(extreme, b, ~down)


def partial_interval(honest: Tensor) -> tuple[Tensor, Tensor]:
    """Return 3 to 4 standard deviations beyond the mean, per coordinate."""
    centre, std = moments(honest)
    sign = benign_sign(centre)
    ends = centre - 3 * sign * std, centre - 4 * sign * std
    return torch.minimum(*ends), torch.maximum(*ends)


def krum_picks(distances: Tensor, squares: Tensor, n: int, f: int) -> bool:
    """Say whether Krum picks one of f equal vectors at squared distances ``squares`` from H.

    ``distances``: (h, h) squared, among the honest. Squared distances to the n - f - 2 nearest
    others; a tie goes to the honest.
    """
    count = max(1, distances.shape[0] - 2)
    # The f - 1 other attackers are at distance 0 and take the first places.
    mine = squares.sort().values[: max(0, count - (f - 1))].sum()
    rows = torch.cat([distances, squares[:, None].expand(-1, f)], dim=1).sort(dim=1).values
    # From 1 on: place 0 is the distance to itself.
    return bool(mine < rows[:, 1 : count + 1].sum(dim=1).min())


def krum_size(honest: Tensor, sign: Tensor, n: int, f: int) -> float:
    """Halve lambda from the upper bound of Theorem 1 until Krum picks -lambda * sign."""
    distances = squared_distances(honest)
    zero = torch.zeros_like(sign)
    squares, products = along(honest, zero, -sign)
    h, dimension = honest.shape[0], sign.numel()
    neighbours, divisor = max(1, h - 2), max(1, h - f - 1)  # the paper's m - c - 2 and m - 2 c - 1
    scores = distances.sqrt().sort(dim=1).values[:, 1 : neighbours + 1].sum(dim=1)
    size = float(scores.min() / divisor + squares.max().sqrt()) / math.sqrt(dimension)
    while size > SMALLEST:
        # |x + size * sign|^2 without another pass over the updates.
        gaps = squares + 2 * size * products + size**2 * dimension
        if krum_picks(distances, gaps, n, f):
            return size
        size /= 2
    return size


def fang(
    honest: Tensor,
    *,
    n: int,
    f: int,
    target: str = "trimmed_mean",
    partial: bool = False,
    b: float = 2.0,
    round: int = 0,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Send the value that hurts the target rule most in every coordinate: (h, d) -> (f, d).

    Parameters
    ----------
    target
        "trimmed_mean" and "median": values drawn evenly just outside the honest ones, on the
        side against the sign of the honest mean, anew for each attacker and coordinate.
        "krum": all send -lambda * sign(mean) with lambda halved until Krum picks it.
    partial
        Not all honest updates are known: draw 3 to 4 standard deviations from the mean instead
        (trimmed_mean and median only).
    b
        How far outside: from the extreme value to b times it (or 1 / b, towards zero).

    Raises
    ------
    ValueError
        For an unknown target or b <= 1; for "krum" with fewer than 3 updates in sight.

    References
    ----------
    Section 4.2 (Krum) and 4.3 (trimmed mean, median), on updates: the received model is the
    zero vector, so the paper's w_re - lambda * s is -lambda * s.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown fang target {target!r}; {suggest(target, list(TARGETS))}")
    if not (b > 1 and math.isfinite(b)):
        raise ValueError(f"fang needs b > 1, got {b}")
    if target == "krum":
        if honest.shape[0] < 3:
            raise ValueError(f"fang against krum needs at least 3 updates, got {honest.shape[0]}")
        sign = benign_sign(mean(honest))
        return repeat(-krum_size(honest, sign, n, f) * sign, f, honest)
    low, high = partial_interval(honest) if partial else full_interval(honest, b)
    source = draws(generator, honest, "fang", round)
    rows = empty_rows(honest, f, out)
    # One draw for each row: row i is the same however many attackers there are.
    for row in rows:
        row.copy_(low + (high - low) * uniform(low.shape, low, source))
    return rows
