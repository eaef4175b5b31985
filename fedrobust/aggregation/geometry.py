"""Rules by whole distances: geometric median, RFA, centered clipping, norm clipping."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.columns import by_blocks, chosen_variant, mean_weights, median
from fedrobust.aggregation.distances import (
    centred_gram,
    clipping,
    norms,
    norms_from,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.weiszfeld import inverse, weiszfeld
from fedrobust.ranges import real, whole


def geometric_median_weights(
    updates: Tensor,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    weights: Tensor | None = None,
) -> Tensor:
    """Minimise the sum of distances to the updates, by Weiszfeld's steps until they stand still.

    What 100 steps do not settle (a median close beside an update) is settled by Newton's.

    Parameters
    ----------
    tolerance
        Step at which the iteration ends, in units of the (harmonic) mean distance of the updates.
    max_iterations
        Steps at most.
    weights
        Shares (n,) of the clients, adding up to 1: the weighted sum of distances. It stays bounded
        while Byzantine clients hold less than half of the weight.

    References
    ----------
    Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, 2017, section 1;
    Weiszfeld 1937. What others call by this name after a few steps is ``rfa`` with its settings.
    """
    real(tolerance, "geometric_median", "tolerance", low=0)
    whole(max_iterations, "geometric_median", "max_iterations", low=1)
    return weiszfeld(
        centred_gram(updates),
        tolerance=tolerance,
        max_iterations=max_iterations,
        who="geometric_median",
        shares=weights,
    )


STARTS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    # scaled before the sum: huge values may not overflow it
    "mean": lambda rows, weights: mean_weights(rows, weights=weights).to(rows) @ rows,
    "median": lambda rows, weights: median(rows, weights=weights),
    "zero": lambda rows, weights: torch.zeros_like(rows[0]),
}


def rfa_weights(
    updates: Tensor,
    *,
    iterations: int = 3,
    nu: float = 1e-6,
    start: str = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """Take a few smoothed Weiszfeld steps from the mean: one far row moves it anywhere.

    A geometric median that has not converged. With the default settings, 2 of 11 rows at 1e6 move
    the result by 1e4; from ``start = "median"`` it stays near the honest rows.

    Parameters
    ----------
    iterations, nu
        R steps; distances below nu count as nu.
    start
        "mean", "median" (coordinate-wise) or "zero"; ByzFL's GeometricMedian is 3 steps from zero
        with nu = 0.1, FedML's and Plato's differ in R alone.
    weights
        Shares (n,) of the clients, adding up to 1, as in the paper's objective; the start is
        weighted too.

    Raises
    ------
    ValueError
        For no step, a nu that is not positive, or an unknown start.

    References
    ----------
    Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, IEEE TSP 2022,
    Algorithm 2 (R = 3, nu = 1e-6).
    """
    whole(iterations, "rfa", "iterations", low=1)
    real(nu, "rfa", "nu", above=0)
    centre = chosen_variant(STARTS, start, "rfa's start")(updates, weights)
    for _ in range(iterations - 1):
        counted = inverse(norms_from(updates, centre), nu, weights)
        centre = counted.to(updates) @ updates
    return inverse(norms_from(updates, centre), nu, weights)


def centered_clipping_step(
    updates: Tensor,
    *,
    tau: float,
    iterations: int = 1,
    start: str = "previous",
    memory: Tensor | None = None,
    weights: Tensor | None = None,
) -> Outcome:
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
    weights
        Shares (n,) of the clients, adding up to 1: the clipped offsets are averaged by them. A
        client moves the result by tau times its share at most.

    Raises
    ------
    ValueError
        For a radius that is not positive, no step, or an unknown start.

    References
    ----------
    Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021,
    Algorithm 2. ByzFL: tau 100, 1 step; fedlib: tau 5, 5 steps.
    """
    real(tau, "centered_clipping", "tau", above=0)
    whole(iterations, "centered_clipping", "iterations", low=1)
    if start == "previous":
        centre = torch.zeros_like(updates[0]) if memory is None else memory
    else:
        known = {name: STARTS[name] for name in ("mean", "median")} | {"previous": None}
        centre = chosen_variant(known, start, "centered_clipping's start")(updates, weights)
    each = mean_weights(updates, weights=weights)
    counted = torch.zeros(len(updates), dtype=torch.float64)
    for _ in range(iterations):
        distances = norms_from(updates, centre)
        share = clipping(distances, tau) * each
        counted = counted * (1 - share.sum()) + share
        centre = centre * float(1 - share.sum()) + share.to(updates) @ updates
    return Outcome(centre, centre, counted)


def norm_clipping_weights(
    updates: Tensor, *, bound: float, weights: Tensor | None = None
) -> Tensor:
    """Clip each update to norm ``bound``, average.

    Parameters
    ----------
    bound
        > 0.
    weights
        Shares (n,) of the clients, adding up to 1: a client moves the result by bound times its
        share at most.

    Raises
    ------
    ValueError
        For a bound that is not positive.

    References
    ----------
    Sun et al., Can You Really Backdoor Federated Learning?, 2019, section 4.
    """
    real(bound, "norm_clipping", "bound", above=0)
    return clipping(norms(updates), bound) * mean_weights(updates, weights=weights)


def groups_of(settings: dict[str, Any]) -> int:
    """Return the fewest updates of ``median_of_means``: one a group."""
    return whole(settings["groups"], "median_of_means", "groups", low=1)


def median_of_means_step(
    updates: Tensor, *, groups: int, inner: str = "geometric_median"
) -> Outcome:
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
    n = len(updates)
    whole(groups, f"median_of_means of {n} updates", "groups", low=1, high=n)
    geometric = chosen_variant({"geometric_median": True, "median": False}, inner, "inner median")
    bounds = [n * i // groups for i in range(groups + 1)]
    mixing = torch.zeros(groups, n, dtype=torch.float64)
    for row, (first, last) in zip(mixing, pairwise(bounds), strict=True):
        row[first:last] = 1 / (last - first)  # before the sum: huge values may not overflow it
    if not geometric:
        means = mixing.to(updates)
        return Outcome(by_blocks(updates, lambda block: median(means @ block)), None, None)
    gram = centred_gram(updates, mixing)
    settled = weiszfeld(gram, tolerance=1e-8, max_iterations=10_000, who="median_of_means")
    weights = settled @ mixing
    return Outcome(weighted(updates, weights), None, weights)
