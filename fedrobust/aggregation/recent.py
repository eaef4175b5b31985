"""Rules of 2021-25: robust learning rate, Huber loss, normalised gradients, FedRDF."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.columns import averaged, mean_weights, ranked_mean, sign_sums
from fedrobust.aggregation.distances import (
    centred_gram,
    clipping,
    norms,
    squared_from,
    squared_to_mixture,
)
from fedrobust.aggregation.record import weighted
from fedrobust.ranges import real, whole
from fedrobust.seeds import generator as seeded


def rlr(updates: Tensor, *, threshold: int) -> Tensor:
    """Average, but go the other way in coordinates on whose sign too few clients agree.

    Against backdoors, which a minority plants: where the sum of signs is below the threshold in
    magnitude the coordinate's learning rate becomes negative. A single far row still moves the
    mean anywhere: clip before it.

    Parameters
    ----------
    threshold
        theta, at least 0: the fewest votes by which a sign must win. Above the number of attackers;
        the paper takes 4 of 10 to 8 of 40 clients.

    Raises
    ------
    ValueError
        For a threshold that is no whole number of at least 0.

    References
    ----------
    Ozdayi, Kantarcioglu, Gel, Defending against Backdoors in Federated Learning with Robust
    Learning Rate, AAAI 2021, equation 4. A coordinate that nobody changes stays.
    """
    whole(threshold, "rlr", "threshold")
    agreed = sign_sums(updates).abs() >= threshold
    average = weighted(updates, mean_weights(updates))
    return torch.where(agreed, average, -average)


def fednga_weights(updates: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Scale each update to length 1, average.

    Only directions count, and the result has at most length 1: the server's learning rate sets the
    step. An update of zeros counts nothing.

    Parameters
    ----------
    weights
        Shares (n,) of the clients, adding up to 1, as in the paper; equal unless given.

    References
    ----------
    Zuo, Yan, Fan, Hu, Shan, Quek, Byzantine-resilient Federated Learning Employing Normalized
    Gradients on Non-IID Datasets, 2024 (arXiv 2408.09539), Algorithm 1 (Fed-NGA). Needs less than
    half of the weight to be Byzantine.
    """
    lengths = norms(updates)
    shares = mean_weights(updates, weights=weights)
    return torch.where(lengths > 0, shares / lengths, 0.0)


def fedrdf(
    updates: Tensor,
    *,
    threshold: float = 0.0,
    coordinates: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take the upper median of each coordinate; with a threshold the mean where little is skewed.

    Read from the authors' program, an interpretation where the paper may differ: of each
    coordinate's values, in order, it takes the one at the place of the highest frequency of a
    Fourier transform of n values. That place is n // 2 whatever the values are: a median. Its test
    for skewness splits a coordinate's values at random, three tenths against the rest, and asks
    whether both parts have one distribution (Kolmogorov-Smirnov, 5 %). A random split has, attacked
    or not: the share of splits that fail it is 5 % at most in the mean, and a threshold above that
    makes this rule the mean.

    Parameters
    ----------
    threshold
        Share of failed tests below which the mean is taken, in [0, 1]; 0 always takes the median.
    coordinates
        How many coordinates are tested, drawn anew in each call; the program tests all of them.
    generator
        For the splits; None draws from a fixed one.

    Raises
    ------
    ValueError
        For settings out of range.

    References
    ----------
    Marmol Campos, Gonzalez-Vidal, Hernandez-Ramos, Skarmeta, FedRDF: A Robust and Dynamic
    Aggregation Function against Poisoning Attacks in Federated Learning, IEEE Transactions on
    Emerging Topics in Computing 2025 (arXiv 2402.10082), and the program of its strategy.
    """
    real(threshold, "fedrdf", "threshold", low=0, high=1)
    whole(coordinates, "fedrdf", "coordinates", low=1)
    n = len(updates)
    if threshold and skewed(updates, coordinates, generator) < threshold:
        return averaged(updates)
    return ranked_mean(updates, n // 2, n // 2 + 1)


def skewed(updates: Tensor, coordinates: int, generator: torch.Generator | None) -> float:
    """Return the share of drawn coordinates whose random split fails FedRDF's test; 1 for n < 4."""
    from scipy.stats import ks_2samp  # a third of a second to import

    n, d = updates.shape
    part = int(0.3 * n)
    if not part:
        return 1.0
    source = seeded(0, "fedrdf") if generator is None else generator
    where: dict[str, Any] = {"generator": source, "device": source.device}
    columns = torch.randperm(d, **where)[:coordinates].to(updates.device)
    failed = 0
    for values in updates[:, columns].T.double().cpu():
        values = values[torch.randperm(n, **where).cpu()]
        failed += bool(ks_2samp(values[part:], values[:part]).pvalue < 0.05)
    return failed / len(columns)


def huber_weights(
    updates: Tensor,
    *,
    threshold: float,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    weights: Tensor | None = None,
) -> Tensor:
    """Minimise the sum of Huber losses of the distances to the updates.

    Near rows count as in a mean, rows farther than the threshold as in a geometric median: each
    pulls with the threshold at most.

    Parameters
    ----------
    threshold
        T > 0, in the units of the updates, about the distance of an honest update from the mean.
    tolerance
        Step at which the iteration ends, in thresholds.
    max_iterations
        Steps at most.
    weights
        Shares (n,) of the clients, adding up to 1, as in the paper; equal unless given.

    Raises
    ------
    ValueError
        For a threshold that is not positive.

    Warns
    -----
    RuntimeWarning
        If the steps end before they stand still.

    References
    ----------
    Zhao, Yu, Wan, A Huber Loss Minimization Approach to Byzantine Robust Federated Learning, AAAI
    2024 (arXiv 2308.12581), the aggregator and its algorithm after Weiszfeld, with one threshold
    for all clients: weights min(1, T / distance).
    """
    real(threshold, "huber", "threshold", above=0)
    real(tolerance, "huber", "tolerance", low=0)
    whole(max_iterations, "huber", "max_iterations", low=1)
    gram = centred_gram(updates)
    shares = mean_weights(updates, weights=weights)

    def pulls(distances: Tensor) -> Tensor:
        counted = clipping(distances, threshold) * shares
        return counted / counted.sum()

    # A start that far rows do not move: by each row's median distance to the others.
    current = pulls(squared_from(gram).sqrt().median(0).values)
    for _ in range(max_iterations):
        moved = pulls(squared_to_mixture(gram, current).sqrt())
        step = moved - current
        current = moved
        if (step @ gram @ step).clamp(min=0).sqrt() <= tolerance * threshold:
            return current
    warnings.warn(
        f"huber has not converged after {max_iterations} steps: raise max_iterations or tolerance",
        RuntimeWarning,
        stacklevel=2,
    )
    return current
