"""Who agrees with whom: from returned values to classes, from classes to counts of agreements.

A label matrix (workers, files) of int64 says which workers returned the same value of a file: equal
labels in a column agree, ``MISSING`` is a value that did not come (or that the worker never held).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MISSING = -1


@dataclass(frozen=True)
class Agreement:
    """(K, K) int64: files on which a pair agreed (``counts``), of those both returned (``shared``).

    A pair that shares no returned file is no evidence either way. Diagonals are zero.
    """

    counts: Tensor
    shared: Tensor

    def __add__(self, other: Agreement) -> Agreement:
        """Add the evidence of two iterations."""
        return Agreement(self.counts + other.counts, self.shared + other.shared)


def agreement(labels: Tensor) -> Agreement:
    """Count, for each pair of workers, the files both returned and those they agree on.

    Costs O(files x copies^2). Reference: ToN 2023, agreement graph (alpha).
    """
    workers = labels.shape[0]
    holders, values = compact(labels)
    counts = torch.zeros(workers * workers, dtype=torch.int64)
    shared = counts.clone()
    for i in range(holders.shape[1]):
        for j in range(i + 1, holders.shape[1]):
            both = holders[:, j] >= 0
            # A pair as one number for bincount; holders are in order: the upper triangle only.
            pair = holders[both, i] * workers + holders[both, j]
            equal = values[both, i] == values[both, j]
            shared += torch.bincount(pair, minlength=workers * workers)
            counts += torch.bincount(pair[equal], minlength=workers * workers)
    counts, shared = counts.view(workers, workers), shared.view(workers, workers)
    return Agreement(counts + counts.T, shared + shared.T)


def compact(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the workers that returned each file, in order, and their labels: (files, copies) each.

    Both are padded with -1 where a file came back from fewer workers.
    """
    came = labels != MISSING
    most = int(came.sum(0).max()) if labels.numel() else 0
    # Those that came sort first; stable keeps them in the order of the workers.
    order = torch.sort((~came).byte(), dim=0, stable=True).indices[:most].T
    present = came.gather(0, order.T).T
    values = labels.gather(0, order.T).T
    return torch.where(present, order, -1), torch.where(present, values, MISSING)


def label_digests(
    digests: Mapping[tuple[int, int], Hashable], *, workers: int, files: int
) -> Tensor:
    """Label returned digests, keyed by (worker, file): equal digests get equal labels."""
    seen: dict[tuple[int, Hashable], int] = {}
    count = [0] * files  # values of each file so far
    keys, told = _ordered(digests, workers, files), []
    for worker, file in keys:
        label = seen.setdefault((file, digests[worker, file]), count[file])
        count[file] += label == count[file]
        told.append(label)
    labels = torch.full((workers, files), MISSING)
    rows, columns = torch.tensor(keys, dtype=torch.int64).view(-1, 2).unbind(1)
    labels[rows, columns] = torch.tensor(told, dtype=torch.int64)
    return labels


def label_values(
    values: Mapping[tuple[int, int], Tensor],
    *,
    workers: int,
    files: int,
    tolerance: float | None = None,
) -> Tensor:
    """Label returned vectors, keyed by (worker, file).

    ``tolerance=None`` compares bit by bit; a number clusters by relative distance, see `cluster`.
    """

    def label(column: dict[int, Any]) -> list[int]:
        stack = torch.stack(list(column.values()))
        return (exact(stack) if tolerance is None else cluster(stack, tolerance=tolerance)).tolist()

    return _label(values, label, workers=workers, files=files)


def _label(
    returned: Mapping[tuple[int, int], Any],
    label: Callable[[dict[int, Any]], list[int]],
    *,
    workers: int,
    files: int,
) -> Tensor:
    columns: dict[int, dict[int, Any]] = {}
    for worker, file in _ordered(returned, workers, files):
        columns.setdefault(file, {})[worker] = returned[worker, file]
    labels = torch.full((workers, files), MISSING)
    for file, column in columns.items():
        labels[list(column), file] = torch.tensor(label(column))
    return labels


def _ordered(
    returned: Mapping[tuple[int, int], Any], workers: int, files: int
) -> list[tuple[int, int]]:
    """Return the keys in the workers' order: labels must not depend on which reply came first."""
    keys = sorted(returned)
    for worker, file in keys:
        if not (0 <= worker < workers and 0 <= file < files):
            raise ValueError(f"no worker {worker} with file {file} among {workers} x {files}")
    return keys


def exact(stack: Tensor) -> Tensor:
    """Label the rows of (r, d): equal labels for rows with the same bits (0.0 and -0.0 differ)."""
    # Compared as bytes: a NaN equals itself, and -0.0 is not 0.0, as in a digest.
    bits = stack.detach().reshape(len(stack), -1).contiguous().view(torch.uint8)
    labels: list[int] = []
    for row in bits:
        equal = (
            label for label, other in zip(labels, bits, strict=False) if torch.equal(row, other)
        )
        labels.append(next(equal, max(labels, default=-1) + 1))
    return torch.tensor(labels, dtype=torch.int64)


def relative_distances(stack: Tensor) -> Tensor:
    """(r, r) float64: |a - b| / max(|a|, |b|) over the whole vector; infinite if not finite."""
    rows = stack.detach().flatten(1).double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    # Row by row: all differences at once would take r times the memory of the values.
    gaps = torch.stack([torch.linalg.vector_norm(rows - row, dim=1) for row in rows])
    largest = torch.maximum(norms[:, None], norms[None, :])
    # Two vectors of zeros agree; 0 / 0 would be NaN.
    ratio = torch.where(largest == 0, 0.0, gaps / largest)
    return torch.nan_to_num(ratio, nan=torch.inf, posinf=torch.inf)


def cluster(stack: Tensor, *, tolerance: float) -> Tensor:
    """Label the rows of (r, d) by clusters around medoids, since closeness is not transitive.

    The row with the most rows within ``tolerance`` (the closest ones, then the first, on a tie)
    and those rows form a cluster; so on with the rest. A Byzantine worker may move a value by the
    relative size ``tolerance`` unseen. Rows may also be sketches of the values, see
    `fedrobust.redundancy.commitments.sketch`.

    Raises
    ------
    ValueError
        Unless 0 <= tolerance < 1: at 1 and above, a vector agrees with zero, or with anything.
    """
    check_tolerance(tolerance)
    distances = relative_distances(stack).cpu()
    # A row that is not finite is infinitely far even from itself.
    free = torch.isfinite(distances.diagonal())
    labels = torch.full((len(stack),), MISSING)
    near = distances <= tolerance
    for label in range(len(stack)):
        if not free.any():
            break
        reach = (near & free).sum(1).where(free, torch.tensor(-1))
        spread = distances.where(near & free, torch.tensor(0.0, dtype=torch.float64)).sum(1)
        best = reach == reach.max()
        medoid = int(spread.where(best, torch.tensor(torch.inf, dtype=torch.float64)).argmin())
        members = near[medoid] & free
        labels[members] = label
        free = free & ~members
    alone = labels == MISSING
    # Each a label of its own: what is not finite agrees with nobody.
    labels[alone] = len(stack) + torch.arange(len(stack))[alone]
    return labels


def check_tolerance(tolerance: float) -> None:
    """Raise a ValueError unless 0 <= tolerance < 1."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"the relative tolerance must be in [0, 1), got {tolerance}")
