"""The Dirichlet partition, which exists for every alpha and every number of clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedrobust.data.sets import DataError
from fedrobust.data.similarity import EqualPartitioner

REDRAWS = 10


class DirichletPartitioner:
    """Portions of each class drawn from Dirichlet(alpha).

    Equal, index by index, to flwr-datasets' partitioner of the same seed wherever that one finds a
    partition within its 10 redraws; here the last draw is repaired instead of refused.
    """

    def __init__(self, clients: int, alpha: float, minimum: int, seed: int) -> None:
        self._clients = clients
        self._alpha = alpha
        self._minimum = minimum
        self._seed = seed

    def split(self, labels: np.ndarray) -> list[list[int]]:
        """Return the places of each client's images among all images.

        Raises
        ------
        DataError
            If there are fewer than ``minimum`` images a client.
        """
        needed = self._clients * self._minimum
        if len(labels) < needed:
            raise DataError(
                f"dirichlet with minimum={self._minimum} over {self._clients} clients needs "
                f"{needed} images, got {len(labels)}"
            )
        source = np.random.default_rng(self._seed)
        for _ in range(1 + REDRAWS):
            shares = _draw(labels, self._clients, self._alpha, source)
            if min(map(len, shares)) >= self._minimum:
                break
        _fill(shares, self._minimum)
        # Dealt class by class: a share would be sorted by class otherwise.
        for share in shares:
            source.shuffle(share)
        return shares


def dirichlet(*, alpha: float, clients: int, seed: int, minimum: int = 1) -> Any:
    """Split each class over the clients in portions drawn from Dirichlet(alpha).

    How much a client holds follows from the draws too. A draw that leaves a client with fewer than
    ``minimum`` images is repeated, 10 times at most; after that whoever has too few gets the last
    images of whoever has most. ``alpha`` = inf is iid; towards 0 each class goes to one client.

    References
    ----------
    Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019,
    section 4 (flwr-datasets' DirichletPartitioner). Hsu, Qi, Brown, Measuring the Effects of
    Non-Identical Data Distribution, 2019, draw the classes of each client instead, at equal sizes.
    """
    if not alpha > 0:
        raise DataError(f"dirichlet needs alpha > 0, got {alpha}")
    if minimum < 1:
        raise DataError(f"dirichlet needs minimum of at least 1, got {minimum}")
    # numpy draws NaN from it.
    if math.isinf(alpha):
        return EqualPartitioner(clients)
    return DirichletPartitioner(clients, float(alpha), minimum, seed)


def _draw(
    labels: np.ndarray, clients: int, alpha: float, source: np.random.Generator
) -> list[list[int]]:
    """Deal the images of one class after the other, in the portions that were drawn for it."""
    shares: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        chosen = np.nonzero(labels == label)[0]
        portions = source.dirichlet(np.full(clients, alpha))
        if not np.isfinite(portions).all():
            # Alpha is so small that the portions underflow: in the limit a single client gets the
            # class, each with the same probability.
            portions = np.zeros(clients)
            portions[source.integers(clients)] = 1.0
        # Without the last cut, the end itself: the sum of the portions may round below 1.
        cuts = (np.cumsum(portions) * len(chosen)).astype(int)[:-1]
        for share, part in zip(shares, np.split(chosen, cuts), strict=True):
            share.extend(part.tolist())
    return shares


def _fill(shares: list[list[int]], minimum: int) -> None:
    """Give whoever has too few images the last ones of whoever has most, one by one."""
    for share in shares:
        while len(share) < minimum:
            share.append(max(shares, key=len).pop())
