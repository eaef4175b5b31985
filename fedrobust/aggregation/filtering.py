"""Filters for high dimensions: whoever sticks out along the main direction loses weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import averaged
from fedrobust.aggregation.distances import centred_gram
from fedrobust.aggregation.projection import sketch
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.spectral import principal_scores
from fedrobust.ranges import real, whole
from fedrobust.seeds import generator as seeded


def filtering(
    updates: Tensor, *, f: int, variance: float, expansion: float = 20.0, chunk: int = 1000
) -> Tensor:
    """Weigh updates down along the main direction until their variance is one of honest updates.

    Each group of ``chunk`` coordinates is filtered by itself, as the authors do to bear the cost.
    An attacker that adds as much in each group as its filter lets through moves the result by
    sqrt(d / chunk) of that (the attack ``hidra``).

    Parameters
    ----------
    variance
        The most that honest updates vary along any direction of a group, sigma, positive: their
        covariance's largest eigenvalue, in the units of the updates squared.
    expansion
        The filter ends at a variance of sqrt(expansion) sigma, at least 1.
    chunk
        Coordinates that are filtered together, at least 1. With all of them at once the bound holds
        in any dimension, for one eigenproblem of size (n, n) a step.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or for settings out of range.

    References
    ----------
    Diakonikolas, Kamath, Kane, Li, Moitra, Stewart, Being Robust (in High Dimensions) Can Be
    Practical, ICML 2017; Zhu, Wang, Pang, Wang, Jiao, Song, Jordan, Byzantine-Robust Federated
    Learning with Optimal Statistical Rates, AISTATS 2023, and the authors' program, ``filterL2``
    (expansion 20, groups of 1,000). Their steps number 2 f or 10; here 2 f, each of which takes a
    row out at least.
    """
    real(variance, "filtering", "variance", above=0)
    limit = real(expansion, "filtering", "expansion", low=1) ** 0.5 * variance
    parts = updates.split(whole(chunk, "filtering", "chunk", low=1), 1)
    return torch.cat([_mean(part, filtered(centred_gram(part), f, limit)) for part in parts])


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; of equal weights the mean itself."""
    even = bool((weights == weights[0]).all())
    return averaged(rows) if even else weighted(rows, weights)


def filtered(gram: Tensor, f: int, limit: float | None) -> Tensor:
    """Filter at most 2 f times; return weights (n,) that add up to 1.

    Parameters
    ----------
    gram
        (n, n) products of the rows about any common centre.
    limit
        Ends once the variance along the main direction is no more than this; None: of all steps the
        weights of the least such variance are taken.
    """
    weights = torch.ones(len(gram), dtype=torch.float64)
    best, least = weights, float("inf")
    for _ in range(2 * f):
        value, scores = principal_scores(gram, weights)
        if limit is None and value < least:
            best, least = weights, value
        # Rows that are out may not set the size of a step: see ``caf``.
        greatest = scores[weights > 0].max()
        if not greatest > 0 or (limit is not None and value <= limit):
            break
        lower = weights * (1 - scores / greatest).clamp(min=0)
        lower[lower < 1e-12] = 0
        if not bool(lower.any()):  # all stick out alike
            break
        weights = lower
    if limit is None and f:
        last = principal_scores(gram, weights)[0]
        weights = weights if last < least else best
    return weights / weights.sum()


def randeigen_weights(
    updates: Tensor,
    *,
    f: int,
    dimension: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Weigh updates down along the main direction of a random projection; no bound is asked for.

    An interpretation of RandEigen, whose abstract and program are what was at hand: a random
    projection, the main direction there, weights 1 - score / greatest score, in at most 2 f steps.
    Of these the weights of least variance are taken, as ``caf`` does, since the paper asks for no
    threshold and the program for one. The projection is the count sketch of ``projected``, where
    theirs is Gaussian, and the eigenvector is exact, where theirs takes power steps.

    Parameters
    ----------
    dimension
        Sums in each of the two tables of the projection, at least 1; with 2 ``dimension``
        coordinates or fewer nothing is projected.
    generator
        For the projection; None draws from a fixed one.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or for a dimension below 1.

    References
    ----------
    Lee, Kolluri, Saxena, Chang, A Practical and Secure Byzantine Robust Aggregator, CCS 2025 (arXiv
    2506.23183).
    """
    whole(dimension, "randeigen", "dimension", low=1)
    source = seeded(0, "randeigen") if generator is None else generator
    return filtered(centred_gram(sketch(updates, dimension, source)), f, None)
