"""A partition over sites of given sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedrobust.data.sets import DataError
from fedrobust.data.similarity import as_they_come_and_by_label


class SizesPartitioner:
    """Consecutive parts of given sizes, of the data as they come and of the rest by label."""

    def __init__(self, shares: Sequence[float], gamma: float) -> None:
        # Ends, not lengths: rounded, they leave no gap and no overlap.
        self._ends = np.cumsum(shares) / np.sum(shares)
        self._gamma = gamma

    def split(self, labels: np.ndarray) -> list[np.ndarray]:
        """Return the places of each client's images among all images."""
        piles = [
            np.split(pile, np.rint(self._ends * len(pile)).astype(int)[:-1])
            for pile in as_they_come_and_by_label(labels, self._gamma)
        ]
        return [np.concatenate(parts) for parts in zip(*piles, strict=True)]


def sizes(
    *, shares: Sequence[float], clients: int, seed: int, gamma: float = 1.0
) -> SizesPartitioner:
    """Give each client a stated share of the data: sites that differ in size.

    Parameters
    ----------
    shares
        One positive number a client, in any unit: {0.5, 0.25, 0.25} or {2, 1, 1}.
    gamma
        The part of the data that is dealt at random, in [0, 1]; the rest is sorted by label first.

    Raises
    ------
    DataError
        For another number of shares than clients, one that is not positive, or a gamma out of
        range.

    References
    ----------
    Quantity skew; Kairouz et al., Advances and Open Problems in Federated Learning, 2021, section
    3.1.
    """
    if not isinstance(shares, Sequence) or isinstance(shares, str) or len(shares) != clients:
        found = len(shares) if isinstance(shares, Sequence) else shares
        raise DataError(f"sizes needs one share for each of {clients} clients, got {found}")
    # By type: True is an int to isinstance.
    numbers = all(type(one) in (int, float) and 0 < one < math.inf for one in shares)
    if not numbers:
        raise DataError(f"sizes needs shares above 0, got {list(shares)}")
    if not 0 <= gamma <= 1:
        raise DataError(f"sizes needs gamma in [0, 1], got {gamma}")
    return SizesPartitioner(shares, float(gamma))
