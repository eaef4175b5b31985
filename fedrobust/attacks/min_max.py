"""Min-Max and Min-Sum: the largest shift that stays within the honest updates' own distances.

Shejwalkar, Houmansadr, Manipulating the Byzantine, NDSS 2021, sections IV-B2 and IV-B3 (attacks
that know no rule). The sizes are exact: both conditions are quadratic in gamma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.attacks.moments import along, moments, repeat, squared_distances, unit
from fedrobust.spec import suggest

DIRECTIONS = ("std", "sign", "unit")


def perturbation(honest: Tensor, direction: str, ddof: int) -> tuple[Tensor, Tensor]:
    """Return the honest mean and the direction to leave it in, both (d,) float64."""
    if direction not in DIRECTIONS:
        hint = suggest(str(direction), list(DIRECTIONS))
        raise ValueError(f"unknown direction {direction!r} of min_max or min_sum; {hint}")
    # ddof = 1 would divide 0 by 0; one update alone has spread 0 by definition here.
    if honest.shape[0] == 1:
        ddof = 0
    centre, std = moments(honest, ddof=ddof)
    choices = {"std": std, "sign": centre.sign(), "unit": unit(centre)}
    return centre, -choices[direction]


def min_max(honest: Tensor, *, n: int, f: int, direction: str = "std", ddof: int = 1) -> Tensor:
    """Send mean + gamma * p, no further from any honest update than two of them are apart.

    Parameters
    ----------
    direction
        p is minus the standard deviation ("std"), minus the sign of the mean ("sign") or minus
        the mean at norm 1 ("unit").
    ddof
        Of the standard deviation; 1 as in the authors' code. A single update has spread 0.

    Raises
    ------
    ValueError
        For an unknown direction or ddof.

    References
    ----------
    Section IV-B2: the largest gamma with max_i ||B - x_i|| <= max_ij ||x_i - x_j||. The authors
    search it by halving steps; here it is the least positive root over i of the quadratic
    |p|^2 gamma^2 + 2 <mean - x_i, p> gamma + ||mean - x_i||^2 - max_ij ||x_i - x_j||^2.
    """
    centre, p = perturbation(honest, direction, ddof)
    size = p.square().sum()
    if size == 0:
        return repeat(centre, f, honest)
    squares, products = along(honest, centre, p)
    # Never below 0 but for rounding, where the root would be NaN.
    room = (squared_distances(honest).max() - squares).clamp(min=0)
    # The stable form of (-b + sqrt(b^2 + size * room)) / size for positive b.
    root = (products.square() + size * room).sqrt()
    # where computes both branches: the floor, which exists in float64 only, keeps 0 / 0 out.
    gammas = torch.where(
        products > 0, room / (products + root).clamp(min=1e-300), (root - products) / size
    )
    # The smallest: the bound has to hold for every honest update.
    return repeat(centre + gammas.min() * p, f, honest)


def min_sum(
    honest: Tensor,
    *,
    n: int,
    f: int,
    direction: str = "std",
    bound: str = "max",
    ddof: int = 1,
) -> Tensor:
    """Send mean + gamma * p, in total no further from the honest updates than one of them is.

    Parameters
    ----------
    direction, ddof
        As in ``min_max``.
    bound
        "max" (the paper's text): the honest update with the largest sum of squared distances to
        the others sets the limit; "min" (the authors' notebooks): the one with the smallest.

    Raises
    ------
    ValueError
        For an unknown direction, bound or ddof.

    References
    ----------
    Section IV-B3: sum_i ||B - x_i||^2 <= max_i sum_j ||x_i - x_j||^2. Around the mean the sums
    differ from h times a squared distance to the mean by a constant, so the largest gamma is
    simply max_i ||x_i - mean|| / ||p|| (or the minimum).
    """
    if bound not in ("max", "min"):
        raise ValueError(f"min_sum needs bound='max' or 'min', got {bound!r}")
    centre, p = perturbation(honest, direction, ddof)
    size = p.square().sum()
    if size == 0:
        return repeat(centre, f, honest)
    squares, _ = along(honest, centre, p)
    limit = squares.max() if bound == "max" else squares.min()
    return repeat(centre + (limit / size).sqrt() * p, f, honest)
