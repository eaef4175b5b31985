"""The gamma-similarity partition of the robust-aggregation literature."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrobust.data.sets import DataError


class SimilarityPartitioner:
    """A share ``gamma`` of the data dealt out as it comes, the rest sorted by a column and cut.

    ``dataset`` is set once, as for flwr-datasets' partitioners.
    """

    def __init__(self, num_partitions: int, gamma: float, by: str = "label") -> None:
        self._parts = num_partitions
        self._by = by
        self._gamma = gamma
        self._piles: tuple[np.ndarray, ...] = ()
        self.dataset: Any = None

    def load_partition(self, partition_id: int) -> Any:
        """Return one client's rows."""
        if not self._piles:
            self._piles = as_they_come_and_by_label(self.dataset[self._by][:], self._gamma)
        parts = [np.array_split(pile, self._parts)[partition_id] for pile in self._piles]
        return self.dataset.select(np.concatenate(parts))


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
