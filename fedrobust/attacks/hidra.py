"""Many small deviations that a filter lets through, one in each group of coordinates (HIDRA)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedrobust.attacks.moments import repeat
from fedrobust.model_layers import Layers, columns
from fedrobust.ranges import real, whole


def hidra(
    honest: Tensor,
    *,
    n: int,
    f: int,
    variance: float | None = None,
    expansion: float = 20.0,
    chunk: int = 1000,
    layers: Layers | None = None,
) -> Tensor:
    """Go against the mean in each group of coordinates as far as a filter bears, all at once.

    A filter that looks at groups of coordinates lets a variance of sqrt(expansion) sigma through in
    each. The attackers take all of it, in the direction opposite to the honest mean there: together
    the groups add up to far more than one would, and the direction is that of the whole mean.

    Parameters
    ----------
    variance
        sigma, positive: the variance that the filter takes for honest, in the units of the updates
        squared; None takes in each group the largest variance of what is seen along any direction.
    expansion
        As the filter's, above 1.
    chunk
        Coordinates of a group, at least 1.
    layers
        (name, shape) of each tensor, as a run hands them in: groups then begin anew in each, as in
        the authors' program. None: groups of all coordinates in a row.

    Raises
    ------
    ValueError
        For settings out of range.

    References
    ----------
    Choudhary, Kolluri, Saxena, Attacking Byzantine Robust Aggregation in High Dimensions, IEEE S&P
    2024, and the authors' program, ``attack_single_direction``: in each group of 1,000 coordinates
    mean - s sqrt((sqrt(20) - 1) sigma / (e^2 + (1 - e)^2 e)), s the mean's direction, e = f / n.
    Their mean is over all clients, with what the attackers would have sent; here over what is seen.
    """
    excess = real(expansion, "hidra", "expansion", above=1) ** 0.5 - 1
    if variance is not None:
        real(variance, "hidra", "variance", above=0)
    whole(chunk, "hidra", "chunk", low=1)
    share = f / n
    room = excess / (share**2 + (1 - share) ** 2 * share)
    sent = torch.empty_like(honest[0], dtype=torch.float64)
    for where in groups(honest.shape[1], chunk, layers):
        block = honest[:, where].double()
        mean = block.mean(0)
        deviation = largest_deviation(block) if variance is None else variance**0.5
        length = torch.linalg.vector_norm(mean)
        step = room**0.5 * deviation / length if length > 0 else 0.0
        sent[where] = mean * (1 - step)
    return repeat(sent, f, honest)


def groups(d: int, chunk: int, layers: Layers | None) -> Iterator[slice]:
    """Yield the groups of at most ``chunk`` coordinates, none of them across two layers."""
    for where in [slice(0, d)] if layers is None else columns(layers):
        for low in range(where.start, where.stop, chunk):
            yield slice(low, min(low + chunk, where.stop))


def largest_deviation(rows: Tensor) -> float:
    """Return the root of the covariance's largest eigenvalue, rows (h, w), divisor h.

    Taken of rows of size 1, whose squares neither overflow nor vanish.
    """
    centred = rows - rows.mean(0)
    size = float(centred.abs().max())
    if not size > 0:
        return 0.0
    scaled = centred / size
    small = scaled @ scaled.T if len(rows) <= rows.shape[1] else scaled.T @ scaled
    return size * max(0.0, float(torch.linalg.eigvalsh(small)[-1]) / len(rows)) ** 0.5
