"""The files of one round: what the server and its workers must know alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedrobust.redundancy.assignment import Assignment, assign, permute
from fedrobust.seeds import derive, generator

FIXED = -1  # worker labels that never change
CODED = "draco_cyclic"


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """Who computes the gradient of which samples in a round.

    Attributes
    ----------
    scheme, m, workers, replication
        The assignment, see `fedrobust.redundancy.assign`.
    batch, examples
        Samples of one round over all files, and of the whole training set.
    seed
        Of the passes over the training set, and of whatever is random in a file's gradient.
    labels
        The round's worker labels follow from this number: the server draws it from its secret when
        the round begins, so that nobody foresees who will hold which file. ``FIXED`` for none.
    round
        Counts from 1.
    """

    scheme: str
    m: int = 0
    workers: int
    replication: int
    batch: int
    examples: int
    seed: int
    labels: int = FIXED
    round: int

    @property
    def base(self) -> Assignment:
        """The assignment before the round's labels."""
        return assigned(self.scheme, self.m, self.workers, self.replication)

    @property
    def assignment(self) -> Assignment:
        """Who holds which file in this round."""
        if self.labels == FIXED:
            return self.base
        return permute(self.base, generator(self.labels, "worker labels"))

    @property
    def indices(self) -> Tensor:
        """Each file's samples, (files, samples per file) int64.

        Passes over the shuffled set; the last partial batch of a pass is dropped, as in the
        authors' code.
        """
        # Rounds count from 1; each pass over the data has an order of its own.
        turn, place = divmod(self.round - 1, self.examples // self.batch)
        order = torch.randperm(self.examples, generator=generator(self.seed, "files", round=turn))
        return order[place * self.batch : (place + 1) * self.batch].view(self.base.files, -1)

    def file_seed(self, purpose: str, file: int) -> int:
        """Return the seed of what is random in a file's gradient: every holder draws the same."""
        return derive(self.seed, purpose, round=self.round, client=file)

    def settings(self) -> dict[str, Any]:
        """Return the plan as plain values, for a message."""
        return asdict(self)


def plan_from(settings: Mapping[str, Any]) -> FilePlan:
    """Read a plan from a message's settings; others are ignored."""
    return FilePlan(**{field.name: settings[field.name] for field in fields(FilePlan)})


# Asked for in every round, by the server and each worker, and always the same.
@lru_cache(maxsize=4)
def assigned(scheme: str, m: int, workers: int, replication: int) -> Assignment:
    """Return a scheme's assignment, made once; nobody writes into it."""
    spec = {"name": scheme} | ({"m": m} if m else {})
    return assign(spec, workers=workers, replication=replication)
