"""From a verdict to the aggregate: sums where the mean is enough, else a rule over values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedrobust import aggregation
from fedrobust.failures import Refusal
from fedrobust.redundancy.decision import CONTESTED, Verdict
from fedrobust.redundancy.voting import bucket_count
from fedrobust.seeds import derive, generator
from strategies.redundancy.reveal import Reveal, reveal_files, reveal_slices
from strategies.redundancy.settings import Settings
from strategies.redundancy.sums import Check, reveal_sums

Accept = Callable[[int, int, Tensor], bool]
NOTHING = "no file could be revealed"


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What the second stage gives.

    ``value`` is (d + b,), ``origin`` file -> the worker it came from, ``path`` how it was fetched:
    "sum", "buckets" or "files"; ``memory`` is the rule's, after this round.
    """

    value: Tensor
    origin: dict[int, int]
    path: str
    memory: Any


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """Fetch and aggregate the chosen values of one round.

    Attributes
    ----------
    settings, rule, memory
        The strategy's, and its rule with what that remembers.
    q
        The most Byzantine workers among those that take part.
    secret, round
        What the round's draws follow from.
    known
        What the rule may ask of the model, by name; computed when asked.
    """

    settings: Settings
    rule: Any
    memory: Any
    q: int
    secret: int
    round: int
    known: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def apply(self, job: Reveal, verdict: Verdict, *, wrong: int | None, accept: Accept | None
              ) -> Aggregate:  # fmt: skip
        """Return the aggregate.

        Parameters
        ----------
        wrong
            The most files that can be wrong; None where nobody knows.
        accept
            A check of revealed values where copies are compared by tolerance.

        Raises
        ------
        Refusal
            If nothing can be revealed, or the rule refuses.
        """
        files = sorted(job.holders)
        if not files:
            raise Refusal("no file was voted for")
        plain = verdict.plain or self.settings.means
        contested = self.settings.detection == CONTESTED
        if accept is not None:
            return self._from_files(job, files, plain, wrong if contested else None, accept)
        if plain or contested:
            return self._from_sums(job, verdict, plain, wrong)
        if self.settings.coordinates:
            value, origin = reveal_slices(
                job, files, width=self.settings.coordinates, combine=lambda rows: self._rule(rows)
            )
            return Aggregate(value=value, origin=origin, path="files", memory=self.memory)
        return self._from_files(job, files, False, None, lambda worker, file, value: True)

    def _from_sums(
        self, job: Reveal, verdict: Verdict, plain: bool, wrong: int | None
    ) -> Aggregate:
        """Fetch sums: one for the plain mean, or as many buckets as outvote the wrong files."""
        check = Check(seed=self._sketch_seed, q=self.q, known=verdict.known)
        buckets = 1 if plain else self._buckets(len(job.holders), wrong)
        sums, origin = reveal_sums(job, groups=buckets, check=check)
        if not sums:
            raise Refusal(NOTHING)
        if plain:
            total = torch.stack([part.total for part in sums]).sum(0)
            # By the files that came, not by those that were voted for.
            return Aggregate(
                value=total / len(origin), origin=origin, path="sum", memory=self.memory
            )
        rows = torch.stack([part.total / len(part.files) for part in sums])
        return self._ruled(rows, origin, "buckets", list(range(len(rows))))

    def _from_files(
        self, job: Reveal, files: list[int], plain: bool, wrong: int | None, accept: Accept
    ) -> Aggregate:
        """Fetch every file; ``wrong`` not None: the rule goes over buckets of them."""
        values, origin = reveal_files(job, files, accept)
        if not values:
            raise Refusal(NOTHING)
        order = self._shuffled(sorted(values))
        rows = torch.stack([values[file] for file in order])
        if plain:
            return Aggregate(value=rows.mean(0), origin=origin, path="files", memory=self.memory)
        if wrong is not None:
            count = self._buckets(len(rows), wrong)
            rows = torch.stack([rows[place::count].mean(0) for place in range(count)])
            return self._ruled(rows, origin, "buckets", list(range(count)))
        return self._ruled(rows, origin, "files", order)

    def _ruled(
        self, rows: Tensor, origin: dict[int, int], path: str, names: list[int]
    ) -> Aggregate:
        source = generator(self.secret, "rule", round=self.round)
        outcome = self.rule.apply(rows, self.memory, source, clients=names, server=self.known)
        return Aggregate(value=outcome.aggregate, origin=origin, path=path, memory=outcome.state)

    def _rule(self, rows: Tensor) -> Tensor:
        aggregate: Tensor = self.rule.apply(rows).aggregate
        return aggregate

    def _buckets(self, files: int, wrong: int | None) -> int:
        """Return how many buckets the rule needs, at most one a file."""
        spec = self.settings.rule
        name = spec if isinstance(spec, str) else spec["name"]
        return bucket_count(name, files=files, wrong=wrong)

    def _shuffled(self, files: list[int]) -> list[int]:
        """Shuffle the files, as DETOX does before its buckets."""
        source = generator(self.secret, "buckets", round=self.round)
        return [files[i] for i in torch.randperm(len(files), generator=source).tolist()]

    def _sketch_seed(self, attempt: int) -> int:
        return sketch_seed(self.secret, self.round, attempt)


def sketch_seed(secret: int, server_round: int, attempt: int) -> int:
    """Return the seed of one attempt's sketches."""
    return derive(secret, "sketch seeds", round=server_round, client=attempt)


def build_rule(settings: Settings) -> Any:
    """Return the rule of the second stage."""
    return aggregation.build(settings.rule, pre=settings.pre)
