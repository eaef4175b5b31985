"""Rules that look for the direction in which the updates vary most."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.distances import centred_gram, lowest
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal
from fedrobust.ranges import real, whole


def principal_scores(gram: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """Return the top eigenvalue of the weighted covariance, and each row's squared projection.

    Everything from products: with rows centred on their weighted mean, the covariance's leading
    eigenvector is a combination of the rows, and an (n, n) eigenproblem gives it exactly.

    Parameters
    ----------
    gram
        (n, n) products of the rows, about any common centre.
    weights
        (n,) not negative, not all zero; the covariance is divided by their sum.
    """
    share = weights / weights.sum()
    offset = gram @ share
    centred = gram - offset[:, None] - offset[None, :] + share @ offset
    root = share.sqrt()
    size = _size(centred)
    centred = centred / size
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root[None, :])
    top = float(values[-1].clamp(min=0))
    if top == 0:
        return 0.0, torch.zeros_like(share)
    # The combination of rows that is the eigenvector has squared length top: hence the division.
    return size * top, (centred @ (root * vectors[:, -1])).square() / top * size


def _size(centred: Tensor) -> float:
    """Return the power of two to divide products by, 1 unless their own products overflow."""
    largest = float(centred.abs().max())
    if largest == 0 or 1e-100 < largest < 1e100:
        return 1.0
    return 2.0 ** round(math.log2(largest))


def looks_at(settings: dict[str, Any]) -> str:
    """Return what ``dnc`` looks at: the distances, unless it takes some coordinates only."""
    return "" if settings.get("coordinates") is not None else "distances"


def dnc_weights(
    updates: Tensor,
    *,
    f: int,
    c: float = 1.0,
    iterations: int = 1,
    coordinates: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop the c f updates that stick out along the main direction, average the rest.

    Outliers of very different sizes mask each other: the largest sets the direction.

    Parameters
    ----------
    c
        How many times f updates each iteration removes.
    iterations
        Repetitions on fresh coordinates; what survives all of them is averaged.
    coordinates
        How many coordinates each repetition looks at; None takes all, exactly.

    References
    ----------
    Shejwalkar, Houmansadr, Manipulating the Byzantine, NDSS 2021, Algorithm 2.
    """
    n, d = updates.shape
    removed = round(real(c, "dnc", "c", low=0) * f)
    whole(iterations, "dnc", "iterations", low=1)
    if coordinates is not None:
        whole(coordinates, "dnc", "coordinates", low=1)
    if removed >= n:
        raise Refusal(f"dnc of {n} updates needs c f < {n}, got c={c}, f={f}")
    kept = torch.ones(n, dtype=torch.bool)
    for _ in range(iterations):
        part = updates
        if coordinates is not None and coordinates < d:
            # On the CPU: the same coordinates wherever the updates are.
            chosen = torch.randperm(d, generator=generator)[:coordinates]
            part = updates[:, chosen.to(updates.device)]
        _, scores = principal_scores(centred_gram(part), torch.ones(n, dtype=torch.float64))
        keep = torch.zeros(n, dtype=torch.bool)
        keep[lowest(scores, n - removed)] = True
        kept &= keep
    if not kept.any():
        raise Refusal(f"dnc with f={f} kept none of {n} updates")
    return even(kept.nonzero().flatten(), n)


def caf_weights(updates: Tensor, *, f: int) -> Tensor:
    """Weigh updates down where they stick out; keep the weights of the least main variance.

    Exact eigenvectors, where the authors' library takes one power step from a random vector. The
    greatest score is taken over the rows that still have weight; in that library a row that is out
    still sets the scale of the next step, so that one far attacker shields another.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Allouah, Guerraoui, Stephan, Towards Trustworthy Federated Learning with Untrusted Participants,
    ICML 2025 (covariance-bound agnostic filter).
    """
    n = len(updates)
    gram = centred_gram(updates)
    weights = torch.ones(n, dtype=torch.float64)
    best, least = weights / n, float("inf")
    while weights.sum() > n - 2 * f:
        value, scores = principal_scores(gram, weights)
        if value < least:
            best, least = weights / weights.sum(), value
        # Only rows that still weigh set the scale of a step: a row that is out could otherwise
        # make every later step as small as it likes. Each step thus removes one row at least.
        greatest = scores[weights > 0].max()
        if not greatest > 0:
            break
        weights = weights * (1 - scores / greatest).clamp(min=0)
        # A row with next to no weight would still set the scale of the next step.
        weights[weights < 1e-12] = 0
    return best
