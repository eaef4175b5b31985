"""Partitions by how much a client has, and by what its inputs are like."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedrobust.data.sets import DataError
from fedrobust.data.similarity import SimilarityPartitioner

FEATURE = "feature"  # the column by which ``feature`` sorts


class QuantityPartitioner:
    """Consecutive parts of shuffled data, whose sizes are drawn."""

    def __init__(self, clients: int, alpha: float, minimum: int, seed: int) -> None:
        self._clients, self._alpha, self._minimum, self._seed = clients, alpha, minimum, seed

    def split(self, labels: np.ndarray) -> list[np.ndarray]:
        """Return the places of each client's examples among all examples."""
        ends = np.cumsum(self.counts(len(labels)))[:-1]
        return np.split(np.arange(len(labels)), ends)

    def counts(self, examples: int) -> list[int]:
        """Return how many examples each client gets; they add up.

        Raises
        ------
        DataError
            If there are fewer than ``minimum`` examples a client.
        """
        free = examples - self._clients * self._minimum
        if free < 0:
            raise DataError(
                f"quantity with minimum={self._minimum} over {self._clients} clients needs"
                f" {self._clients * self._minimum} examples, got {examples}"
            )
        source = np.random.default_rng(self._seed)
        portions = source.dirichlet(np.full(self._clients, self._alpha))
        if not np.isfinite(portions).all():  # alpha is so small that all but one are nothing
            portions = np.eye(self._clients)[source.integers(self._clients)]
        ends = np.rint(np.cumsum(portions) * free).astype(int)
        ends[-1] = free
        return (np.diff(ends, prepend=0) + self._minimum).tolist()


def quantity(*, alpha: float, clients: int, seed: int, minimum: int = 1) -> QuantityPartitioner:
    """Deal shares of one distribution, whose sizes are drawn from Dirichlet(alpha).

    Parameters
    ----------
    alpha
        Above 0; small: a few clients have nearly everything, large: all have as much.
    minimum
        Examples that every client has at least.

    Raises
    ------
    DataError
        For a value out of range.

    References
    ----------
    Li, Diao, Chen, He, Federated Learning on Non-IID Data Silos, ICDE 2022, section 4.3: quantity
    skew.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"quantity needs a finite alpha > 0, got {alpha}")
    if minimum < 1:
        raise DataError(f"quantity needs minimum of at least 1, got {minimum}")
    return QuantityPartitioner(clients, float(alpha), minimum, seed)


def feature(
    *, clients: int, seed: int, column: int = 0, gamma: float = 0.0
) -> SimilarityPartitioner:
    """Sort the examples by one feature of their inputs and cut: clients see different inputs.

    Parameters
    ----------
    column
        Of a table. Of sequences of tokens: how often this token is in them. Images are sorted by
        their brightness, the sum of their pixels.
    gamma
        The part of the data that is dealt at random before, in [0, 1]; 1 is iid.

    Raises
    ------
    DataError
        For a gamma out of range.

    References
    ----------
    Feature distribution skew (covariate shift); Kairouz et al., Advances and Open Problems in
    Federated Learning, 2021, section 3.1.
    """
    if not 0 <= gamma <= 1:
        raise DataError(f"feature needs gamma in [0, 1], got {gamma}")
    return SimilarityPartitioner(clients, float(gamma), by=FEATURE)


def feature_of(inputs: Tensor, column: int) -> Tensor:
    """Return the value (N,) that ``feature`` sorts by, without rounding: equal on every machine.

    Raises
    ------
    DataError
        If the inputs have no such column.
    """
    if inputs.dtype == torch.uint8:
        if column:
            raise DataError(f"partition 'feature' sorts images by brightness, got column={column}")
        return inputs.flatten(1).long().sum(1)
    if inputs.dtype == torch.int64:
        return (inputs.flatten(1) == column).sum(1)
    if inputs.dim() != 2 or not 0 <= column < inputs.shape[1]:
        kind = f"inputs of shape {tuple(inputs.shape[1:])}"
        raise DataError(f"partition 'feature' needs a column of a table, got {column} of {kind}")
    return inputs[:, column]
