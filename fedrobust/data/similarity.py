"""The gamma-similarity partition of the robust-aggregation literature."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrobust.data.sets import DataError


class SimilarityPartitioner:
    """A share ``gamma`` of the data dealt out as it comes, the rest sorted by a column and cut."""

    def __init__(self, num_partitions: int, gamma: float, by: str = "label") -> None:
        self._parts = num_partitions
        self.by = by
        self._gamma = gamma

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the places of each client's images among all images."""
        piles = [
            np.array_split(pile, self._parts)
            for pile in as_they_come_and_by_label(values, self._gamma)
        ]
        return [np.concatenate(parts) for parts in zip(*piles, strict=True)]


class EqualPartitioner:
    """The data as they come, cut into parts of one size; the first parts hold one image more."""

    def __init__(self, num_partitions: int) -> None:
        self._parts = num_partitions

    def split(self, labels: np.ndarray) -> list[np.ndarray]:
        """Return the places of each client's images among all images."""
        return np.array_split(np.arange(len(labels)), self._parts)


def as_they_come_and_by_label(labels: Any, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the first share ``gamma`` of the rows in their order, and the rest sorted by label."""
    labels = np.asarray(labels)
    alike = int(len(labels) * gamma)
    return np.arange(alike), alike + np.argsort(labels[alike:], kind="stable")


def similarity(*, gamma: float, clients: int, seed: int) -> SimilarityPartitioner:
    """Deal a share ``gamma`` of the data at random, sort the rest by label and cut it.

    gamma = 1 is iid, gamma = 0 gives most clients one label ("extreme").

    References
    ----------
    Karimireddy et al., SCAFFOLD, ICML 2020, section 7; as ByzFL's ``gamma_similarity_niid``.
    """
    if not 0 <= gamma <= 1:
        raise DataError(f"similarity needs gamma in [0, 1], got {gamma}")
    return SimilarityPartitioner(clients, float(gamma))
