"""Rules by whole distances: geometric median, RFA, centered clipping, norm clipping."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fedrobust.aggregation.columns import by_blocks, chosen_variant, median
from fedrobust.aggregation.distances import (
    TINY,
    centred_gram,
    norms,
    norms_from,
    squared_from,
    squared_to_mixture,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.selection import weighted


def inverse(distances: Tensor, floor: float) -> Tensor:
    """Return weights 1 / max(floor, distance), adding up to 1."""
    weights = 1 / distances.clamp(min=floor)
    return weights / weights.sum()


def weiszfeld(gram: Tensor, *, tolerance: float, max_iterations: int) -> Tensor:
    """Return the geometric median of n rows as weights (n,), from the products of the rows.

    The median is a weighted mean of the rows, so that its distances need no row: a step costs n^2
    operations, not n d. It starts from weights that fall with each row's median distance.
    """
    weights = inverse(squared_from(gram).sqrt().median(0).values, TINY)
    for _ in range(max_iterations):
        distances = squared_to_mixture(gram, weights).sqrt()
        moved = inverse(distances, TINY)
        step = moved - weights
        weights = moved
        scale = 1 / (1 / distances.clamp(min=TINY)).mean()
        if (step @ gram @ step).clamp(min=0).sqrt() <= tolerance * scale:
            break
    return weights


def geometric_median_weights(
    updates: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 1000
) -> Tensor:
    """Return how much each update counts in the geometric median."""
    return weiszfeld(centred_gram(updates), tolerance=tolerance, max_iterations=max_iterations)


def geometric_median(
    updates: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 1000
) -> Tensor:
    """Minimise the sum of distances to the updates, by Weiszfeld's steps until they stand still.

    Parameters
    ----------
    tolerance
        Step at which the iteration ends, in units of the (harmonic) mean distance of the updates.
    max_iterations
        Steps at most.

    References
    ----------
    Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, 2017, section 1;
    Weiszfeld 1937. What others call by this name after a few steps is ``rfa`` with its settings.
    """
    settings = {"tolerance": tolerance, "max_iterations": max_iterations}
    return weighted(updates, geometric_median_weights(updates, **settings))  # type: ignore[arg-type]


STARTS = {
    "mean": lambda updates: (
        updates.new_full((len(updates),), 1 / len(updates)) @ updates
    ),  # scaled before the sum: huge values may not overflow it
    "median": median,
    "zero": lambda updates: torch.zeros_like(updates[0]),
}


def rfa_weights(
    updates: Tensor, *, iterations: int = 3, nu: float = 1e-6, start: str = "mean"
) -> Tensor:
    """Return the weights of the last step."""
    if iterations < 1 or not nu > 0:
        raise ValueError(f"rfa needs iterations >= 1 and nu > 0, got {iterations}, {nu}")
    centre = chosen_variant(STARTS, start, "rfa's start")(updates)
    for _ in range(iterations - 1):
        weights = inverse(norms_from(updates, centre), nu)
        centre = weights.to(updates) @ updates
    return inverse(norms_from(updates, centre), nu)


def rfa(updates: Tensor, *, iterations: int = 3, nu: float = 1e-6, start: str = "mean") -> Tensor:
    """Take a few smoothed Weiszfeld steps: a geometric median that has not converged.

    Parameters
    ----------
    iterations, nu
        R steps; distances below nu count as nu.
    start
        "mean", "median" (coordinate-wise) or "zero"; ByzFL's GeometricMedian is 3 steps from zero
        with nu = 0.1, FedML's and Plato's differ in R alone.

    Raises
    ------
    ValueError
        For no step, a nu that is not positive, or an unknown start.

    References
    ----------
    Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, IEEE TSP 2022,
    Algorithm 2 (R = 3, nu = 1e-6).
    """
    weights = rfa_weights(updates, iterations=iterations, nu=nu, start=start)
    return weighted(updates, weights)


def centered_clipping_step(
    updates: Tensor,
    *,
    tau: float,
    iterations: int = 1,
    start: str = "previous",
    memory: Tensor | None = None,
) -> Outcome:
    """Aggregate and remember the aggregate; an update's weight is what it contributes."""
    if not tau > 0 or iterations < 1:
        raise ValueError(
            f"clipping needs a radius > 0 and iterations >= 1, got {tau}, {iterations}"
        )
    if start == "previous":
        centre = torch.zeros_like(updates[0]) if memory is None else memory
    else:
        known = {name: STARTS[name] for name in ("mean", "median")} | {"previous": None}
        centre = chosen_variant(known, start, "centered_clipping's start")(updates)
    counted = torch.zeros(len(updates), dtype=torch.float64)
    for _ in range(iterations):
        distances = norms_from(updates, centre)
        share = (tau / distances.clamp_(min=TINY)).clamp_(max=1) / len(updates)
        counted = counted * (1 - share.sum()) + share
        centre = centre * float(1 - share.sum()) + share.to(updates) @ updates
    return Outcome(centre, centre, counted)


def centered_clipping(
    updates: Tensor,
    *,
    tau: float,
    iterations: int = 1,
    start: str = "previous",
    memory: Tensor | None = None,
) -> Tensor:
    """Clip each update's offset from the previous aggregate to norm tau, average, add.

    Parameters
    ----------
    tau
        Clipping radius, > 0.
    iterations
        L clipped steps.
    start
        "previous": the previous aggregate, zero at first. "mean" or "median" of the updates instead
        forget it (ByzPy: 10 steps from the mean).
    memory
        Previous aggregate (d,); zero where None.

    Raises
    ------
    ValueError
        For a radius that is not positive, no step, or an unknown start.

    References
    ----------
    Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021,
    Algorithm 2. ByzFL: tau 100, 1 step; fedlib: tau 5, 5 steps.
    """
    settings = {"tau": tau, "iterations": iterations, "start": start, "memory": memory}
    return centered_clipping_step(updates, **settings).aggregate  # type: ignore[arg-type]


def norm_clipping_weights(updates: Tensor, *, bound: float) -> Tensor:
    """Return min(1, bound / norm) / n for each update."""
    if not bound > 0:
        raise ValueError(f"norm_clipping needs bound > 0, got {bound}")
    return (bound / norms(updates).clamp(min=TINY)).clamp(max=1) / len(updates)


def norm_clipping(updates: Tensor, *, bound: float) -> Tensor:
    """Clip each update to norm ``bound``, average.

    Raises
    ------
    ValueError
        For a bound that is not positive.

    References
    ----------
    Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.
    """
    return weighted(updates, norm_clipping_weights(updates, bound=bound))


def median_of_means_step(
    updates: Tensor, *, groups: int, inner: str = "geometric_median"
) -> Outcome:
    """Aggregate by groups; there are weights where the median is the geometric one."""
    n = len(updates)
    if not 1 <= groups <= n:
        raise ValueError(f"median_of_means of {n} updates needs 1 <= groups <= {n}, got {groups}")
    geometric = chosen_variant({"geometric_median": True, "median": False}, inner, "inner median")
    bounds = [n * i // groups for i in range(groups + 1)]
    mixing = torch.zeros(groups, n, dtype=torch.float64)
    for row, (first, last) in zip(mixing, pairwise(bounds), strict=True):
        row[first:last] = 1 / (last - first)  # before the sum: huge values may not overflow it
    if not geometric:
        means = mixing.to(updates)
        return Outcome(by_blocks(updates, lambda block: median(means @ block)), None, None)
    gram = centred_gram(updates, mixing)
    weights = weiszfeld(gram, tolerance=1e-8, max_iterations=1000) @ mixing
    return Outcome(weighted(updates, weights), None, weights)


def median_of_means(updates: Tensor, *, groups: int, inner: str = "geometric_median") -> Tensor:
    """Average within consecutive groups, take the (geometric) median of the averages.

    Parameters
    ----------
    groups
        k, 1..n; the tolerated number of Byzantine clients is below k / 2. Sizes differ by one at
        most, the later groups being the larger.
    inner
        "geometric_median" or "median" (coordinate-wise).

    Raises
    ------
    ValueError
        For a number of groups outside 1..n or an unknown ``inner``.

    References
    ----------
    Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, 2017, section 3.
    """
    return median_of_means_step(updates, groups=groups, inner=inner).aggregate
