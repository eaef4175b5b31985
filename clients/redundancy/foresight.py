"""The second stage of a round as Byzantine workers reckon it: they ask what the server would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clients.foresight import in_rows
from fedrobust.aggregation import build, follows_rotation
from fedrobust.aggregation.outcome import Outcome
from fedrobust.attacks import impact, spread
from fedrobust.attacks.reduction import Reducible
from fedrobust.experiment.schema import Experiment
from fedrobust.failures import REFUSALS, Refusal
from fedrobust.model_layers import Layers
from fedrobust.redundancy.counted import Counted
from fedrobust.seeds import generator

FARTHEST = 1e9  # as in the rows of a run


@dataclass(frozen=True)
class SecondStage:
    """What the server makes of a round's files, called with rows as attacks ask any rule.

    Of the rows (h + f, d) the first h are the view, the next one is what stands in every wrong
    file that the server keeps; all attackers of a file send one vector.

    Attributes
    ----------
    view
        What the attack sees, (h, d).
    values
        The true values of all files (files, d), or what they are taken for: the view itself where
        it is all of them.
    counted
        What is aggregated.
    factor
        Worker -> what its copy is of the crafted vector: 1 where they collude.
    memory
        The rule's.
    room
        The view with free rows behind it, in one memory; None where there is none.
    """

    experiment: Experiment
    server_round: int
    view: Tensor
    values: Tensor
    counted: Counted
    factor: Callable[[int], float]
    memory: Any
    layers: Layers
    model: Tensor
    room: Tensor | None = None

    def outcome(self, sent: Tensor | None) -> Outcome:
        """Aggregate what the server will hold if this vector (d,) is sent; None: if nobody attacks.

        Raises
        ------
        Refusal
            If no file is kept, or the rule refuses.
        """
        asked, owned, shares = self._operands
        if not len(asked):
            raise Refusal("no file was voted for")
        if len(owned):
            if sent is None:
                asked = replace(self.counted, wrong={}).base(self.values)
            else:
                asked[owned] = torch.addr(self._base[owned], shares, sent.to(asked))
        if self.counted.plain:
            return Outcome(asked[0].clone(), self.memory, None)
        e = self.experiment
        known = {"layers": lambda: self.layers, "model": lambda: self.model}
        # Not the server's draws: these are what nobody can foresee.
        draws = generator(e.seed, "probe", round=self.server_round)
        places = list(range(len(asked)))
        found = build(e.rule, pre=e.pre).apply(
            asked, self.memory, draws, clients=places, server=known
        )
        # A rule that selects a row may answer with a view of it.
        return replace(found, aggregate=found.aggregate.clone())

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the aggregate alone, (d,)."""
        return self.outcome(rows[len(self.view)] if len(rows) > len(self.view) else None).aggregate

    def reducible(self) -> Reducible | None:
        """Return how it is asked in coordinates; None where that would not be exact."""
        e, remembered = self.experiment, in_rows(self.memory, self.view.shape[1])
        if remembered is None or not (self.counted.plain or follows_rotation(e.rule, e.pre)):
            return None
        rows, recall = remembered
        apart = () if self.values is self.view else (self.values,)

        def placed(view: Tensor, given: list[Tensor]) -> SecondStage:
            values, matrices = (given[0], given[1:]) if apart else (view, given)
            return replace(self, view=view, values=values, memory=recall(matrices), room=None)

        return Reducible((*apart, *rows), placed)

    def foreseen(self, sent: Tensor) -> tuple[dict[str, float], Any]:
        """Say what the server will do with a vector, and what the rule will remember.

        Returns
        -------
        How many vectors are aggregated and how many the attackers own, the share of kept files that
        are wrong, and the aggregate's distance from the mean of all files in their spreads; beside
        it the rule's memory.
        """
        c = self.counted
        told: dict[str, float] = {"operands": len(c.groups), "owned": len(c.owned)}
        if c.kept:
            told["wrong_files"] = round(len(c.wrong) / c.kept, 6)
        try:
            found = self.outcome(sent)
        except REFUSALS:
            return told, self.memory
        far = impact(found.aggregate, self.values.mean(0), spread=spread(self.values)).deviation
        return told | {"deviation": round(min(far, FARTHEST), 6)}, found.state

    @cached_property
    def _base(self) -> Tensor:
        return self.counted.base(self.values)

    @cached_property
    def _operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors to be filled, which of them the attackers own, and how much of each."""
        c = self.counted
        owned = torch.tensor(c.owned, dtype=torch.int64)
        shares = [
            sum(self.factor(c.wrong[file]) for file in files if file in c.wrong) / len(files)
            for files in (c.groups[place] for place in c.owned)
        ]
        return self._base.clone(), owned, torch.tensor(shares).to(self._base)
