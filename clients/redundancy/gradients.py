"""The values of one round's files at one model, each computed once, whoever asks for it.

In simulation all workers of a host share one `FileGradients`: redundancy is simulated, not paid
for. On a real node it holds what that node has computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.redundancy import Assignment
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.redundancy.plan import CODED, FilePlan

LARGEST = 8 * 2**30  # bytes of values that are kept; what does not fit is computed anew
CHUNK = 64  # files sketched at once


@dataclass(frozen=True)
class Place:
    """Where gradients are taken: parameters (d,), running statistics (b,), and the round's plan."""

    vector: Tensor
    statistics: Tensor
    plan: FilePlan


Compute = Callable[[Place, Tensor, Sequence[int]], Sequence[Tensor]]


class FileGradients:
    """Honest values of a round: gradients with statistics, digests and sketches, on demand.

    Parameters
    ----------
    compute
        (place, indices of all files, file numbers) -> the value (d + b,) of each.
    group
        Files that are computed in one call: groups are fixed by the files' numbers.
    """

    def __init__(self, compute: Compute, *, group: int = 1) -> None:
        self._compute = compute
        self._group = group
        self._memory = torch.empty(0, 0)
        self._turn: tuple[FilePlan, bytes] | None = None
        self._vector: Tensor | None = None
        self.place: Place  # set by ``turn_to``

    def turn_to(self, vector: Tensor, statistics: Tensor, plan: FilePlan) -> FileGradients:
        """Start on a round's files at a model, unless that is where it stands; return itself.

        The memory of the last round is used again: values that were handed out then are
        overwritten.
        """
        # In one process all workers are handed the same tensor: no hash over d values for each
        # message.
        if self._turn is not None and vector is self._vector and plan == self.place.plan:
            return self
        turn = (plan, digest(vector) + digest(statistics))
        if self._turn == turn:
            return self
        self._turn, self._vector = turn, vector
        self.place = Place(vector.cpu(), statistics, plan)
        self.assignment: Assignment = plan.assignment
        self._indices = plan.indices
        length = vector.numel() + statistics.numel()
        rows = min(self.assignment.files, LARGEST // (4 * length))  # 4 bytes a float32
        if tuple(self._memory.shape) != (rows, length):
            self._memory = torch.empty(rows, length)  # pages are taken when they are written
        self._rows: dict[int, Tensor] = {}
        self._digests: dict[int, bytes] = {}
        self._sketches: dict[tuple[int, int], dict[int, Tensor]] = {}
        self.beside: dict[Any, Any] = {}  # of this turn, for those who send other values
        return self

    @property
    def turn(self) -> tuple[FilePlan, bytes] | None:
        """What tells one round's values from another's."""
        return self._turn

    @property
    def length(self) -> int:
        """Length of a value, d + b."""
        return self.place.vector.numel() + self.place.statistics.numel()

    def files_of(self, worker: int) -> list[int]:
        """Return a worker's files, in order."""
        return self.assignment.matrix[worker].nonzero().flatten().tolist()

    def value(self, file: int) -> Tensor:
        """Return a file's gradient and statistics, (d + b,). Read only."""
        if file in self._rows:
            return self._rows[file]
        # A value's bits may depend on what is computed with it: so on its number, not on who asks.
        first = file - file % self._group
        files = range(first, min(first + self._group, self.assignment.files))
        made = self._compute(self.place, self._indices, files)
        if self.place.plan.scheme != CODED:  # at once, while the values are in a cache
            self._digests |= {f: digest(v) for f, v in zip(files, made, strict=True)}
        kept = [self._keep(number, value) for number, value in zip(files, made, strict=True)]
        return kept[file - first]

    def all_values(self) -> Tensor:
        """Return the values of all files, (files, d + b)."""
        return torch.stack([self.value(file) for file in range(self.assignment.files)])

    def digest(self, file: int) -> bytes:
        """Return the digest of a file's value."""
        if file not in self._digests:
            value = self.value(file)  # its digest comes with it, unless a code needs none
            if file not in self._digests:
                self._digests[file] = digest(value)
        return self._digests[file]

    def sketches(self, files: Sequence[int], *, seed: int, size: int) -> Tensor:
        """Return sketches of the files' values, (len(files), size) float64."""
        known = self._sketches.setdefault((seed, size), {})
        if not known and self._rows:
            # All that is kept at once, where it is: the host's other workers will be asked for
            # the same sketches.
            made = sketch(self._memory[: len(self._rows)], seed=seed, size=size)
            known |= dict(zip(self._rows, made, strict=True))
        wanted = [file for file in files if file not in known]
        for start in range(0, len(wanted), CHUNK):
            part = wanted[start : start + CHUNK]
            made = sketch(torch.stack([self.value(f) for f in part]), seed=seed, size=size)
            known |= dict(zip(part, made, strict=True))
        return torch.stack([known[file] for file in files])

    def total(self, files: Sequence[int], value: Callable[[int], Tensor] | None = None) -> Tensor:
        """Return the sum over files of their values, or of what ``value`` makes of each."""
        value = value or self.value
        result = torch.zeros(self.length)
        for file in files:
            result += value(file)
        return result

    def _keep(self, file: int, value: Tensor) -> Tensor:
        """Copy a value into memory that lasts for the round, while there is room."""
        place = len(self._rows)
        if place >= len(self._memory):
            return value
        row = self._memory[place]
        row.copy_(value)
        self._rows[file] = row
        return row
