"""The server's rule as colluders run it for themselves, with the memory that it has by now.

Who sees every update and chooses the others' knows what a rule with memory remembers: it has seen
all that the rule has seen. What the rule draws, and data of the server's own, it can only guess;
client weights it takes for equal. Who sees fewer updates asks the rule with imagined ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor

from clients.cohorts import imagined
from fedrobust.aggregation import build, follows_rotation
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.tables import is_built_in, rule_record
from fedrobust.attacks import attack_record, impact, spread, threat_model
from fedrobust.attacks.probe import joined
from fedrobust.attacks.reduction import Reducible
from fedrobust.experiment.schema import Experiment
from fedrobust.failures import REFUSALS
from fedrobust.flower import array_of
from fedrobust.flower.node_state import tensor_in
from fedrobust.matrix import apart_from, permute_rows
from fedrobust.model_layers import Layers
from fedrobust.models import Products
from fedrobust.seeds import generator
from fedrobust.simulation import stragglers
from fedrobust.spec import split

MEMORY = "rule-memory"
ALONE = "memory"  # the key of a memory that is one tensor
FARTHEST = 1e9  # as in the rows of a run


@dataclass(frozen=True)
class Foresight:
    """The rule of one round, as the colluders know it.

    Attributes
    ----------
    clients
        Whose the rows are that the rule will be asked with; None where that is not known.
    memory
        What the rule remembers from the rounds before; None where it remembers nothing, or where
        the colluders do not see what it saw.
    room
        The view with a free row for each colluder behind it, in one memory, for a rule of ours to
        be asked with; None where there is no such memory, or the rule is a user's own.
    form
        How the server's rule is shown updates, where it is not as they are sent.
    start
        The global model (d,) of the round.
    layers
        Name and shape of its tensors.
    cohort
        The honest rows that the rule is asked with in the place of the view (n - f, d), where the
        colluders see fewer; None where the view is all of them.
    """

    experiment: Experiment
    server_round: int
    view: Tensor
    clients: tuple[int, ...] | None
    memory: Any
    form: Products | None
    start: Tensor
    layers: Layers
    room: Tensor | None = None
    cohort: Tensor | None = None

    def seen(self, rows: Tensor) -> Tensor:
        """Return rows (m, d) as the rule is shown them."""
        return rows if self.form is None else self.form.seen(rows, self.start)

    def outcome(self, rows: Tensor, *, as_sent: bool = False) -> Outcome:
        """Run the rule on rows (m, d), honest ones first, in the order of their clients.

        ``as_sent`` brings them into the server's order whatever the rule: the last digits of
        distances depend on it, and with them which of two all but equally near rows is the nearer.
        The root update of the server is taken for the mean of the view, its loss for the linear
        part along it.
        """
        if self.cohort is not None:
            rows = torch.cat([self.cohort, rows[len(self.view) :].to(self.cohort)])
        e, rows = self.experiment, self.seen(rows)
        # Worked out when asked: it reads the whole view, and few rules want it.
        middle = cache(lambda: self.seen(self.view).mean(0))
        ids, order = self._order(len(rows), always=as_sent)
        known = {"layers": lambda: self.layers, "model": lambda: self.start}
        rule = build(e.rule, pre=e.pre)
        with self._ordered(rows, order) as asked:
            outcome = rule.apply(
                asked,
                self.memory,
                # Not the server's address "rule": what it will draw is what the colluders can
                # only guess.
                generator(e.seed, "probe", round=self.server_round),
                clients=ids,
                server={
                    "root": middle,
                    "loss": lambda: lambda step: -float(step.to(middle()) @ middle()),
                    **(known if self.form is None else self.form.offered(known, self.start)),
                },
            )
            # Rules that select a row may answer with a view of it.
            return replace(outcome, **apart_from(rows, {"aggregate": outcome.aggregate}))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the rule's output alone, (d,)."""
        found = self.outcome(rows).aggregate
        return found if self.form is None else self.form.sent(found, self.start)

    def reducible(self) -> Reducible | None:
        """Return how it is asked in coordinates; None where that would not be exact."""
        e, remembered = self.experiment, in_rows(self.memory, self.view.shape[1])
        if self.form is not None or remembered is None or not follows_rotation(e.rule, e.pre):
            return None
        rows, recall = remembered

        unseen = () if self.cohort is None else (self.cohort,)

        def placed(view: Tensor, given: list[Tensor]) -> Foresight:
            cohort, matrices = (given[0], given[1:]) if unseen else (None, given)
            return replace(self, view=view, memory=recall(matrices), room=None, cohort=cohort)

        return Reducible((*unseen, *rows), placed)

    @contextmanager
    def _ordered(self, rows: Tensor, order: list[int] | None) -> Iterator[Tensor]:
        """Hand out rows in an order: within the room itself, which is put back, else as a copy."""
        if order is None or order == list(range(len(order))):
            yield rows
        elif self.room is None or rows.data_ptr() != self.room.data_ptr():
            yield rows[order]
        else:
            permute_rows(rows, order)
            try:
                yield rows
            finally:
                permute_rows(rows, sorted(order, key=order.__getitem__))

    def _order(self, rows: int, *, always: bool) -> tuple[Sequence[int] | None, list[int] | None]:
        """Return the rows' clients, and the order in which the server has them, where it counts."""
        name = self.experiment.rule["name"]
        record = rule_record(name)
        plain = is_built_in(name) and not record.order_matters and not record.remembers
        if (plain and not always) or self.clients is None or rows > len(self.clients):
            return None, None
        ids = self.clients[:rows]
        order = sorted(range(rows), key=ids.__getitem__)
        return [ids[place] for place in order], order


def foresee(
    experiment: Experiment,
    server_round: int,
    view: Tensor,
    context: Context,
    *,
    form: Products | None,
    start: Tensor,
    layers: Layers,
    room: Tensor | None = None,
) -> Foresight:
    """Return the rule as the colluders know it before they craft."""
    asked = stragglers.participants(experiment, server_round)
    bad = set(threat_model.members(experiment, round=server_round))
    honest = [client for client in asked if client not in bad]
    # With a reply missing nobody can say which row is whose.
    known = sees_all(experiment) and len(honest) == len(view)
    ids = (*honest, *(c for c in asked if c in bad)) if known else None
    memory = _recalled(context) if known else None
    ours = all(is_built_in(split(one)[0]) for one in (experiment.rule, *experiment.pre))
    mine, cohort = (room if ours else None), None
    if not sees_all(experiment) and attack_record(experiment.attack["name"]).asks_the_rule:
        draws = generator(experiment.seed, "imagined", round=server_round)
        mine, cohort = None, imagined(view, len(honest), draws)
    return Foresight(experiment, server_round, view, ids, memory, form, start, layers, mine, cohort)


def sees_all(experiment: Experiment) -> bool:
    """Whether the attackers see every honest update."""
    return threat_model.knowledge(experiment.attack) == "omniscient"


def foreseen(rule: Foresight, sent: Tensor, context: Context) -> dict[str, float]:
    """Run the rule on what the server will get, and remember what it will remember.

    Returns
    -------
    ``deviation``: how far the colluders expect the aggregate from the honest mean, in honest
    spreads, for comparison with the row's ``impact``; nothing where the rule refuses, or where they
    do not see everything.
    """
    if rule.clients is None:
        return {}
    rows = joined(rule.room, rule.view, sent.to(rule.view))
    try:
        outcome = rule.outcome(rows, as_sent=True)
    except REFUSALS:
        return {}
    _keep(outcome.state, rows, context)
    honest = rule.seen(rule.view)
    found = impact(outcome.aggregate, honest.mean(0), spread=spread(honest))
    return {"deviation": round(min(found.deviation, FARTHEST), 6)}


def _keep(state: Any, rows: Tensor, context: Context) -> None:
    """Keep a rule's memory, a tensor or a table of tensors; any other kind is not understood."""
    table = {ALONE: state} if isinstance(state, Tensor) else state
    if isinstance(table, dict) and all(isinstance(value, Tensor) for value in table.values()):
        context.state[MEMORY] = array_of(**apart_from(rows, table))


def _recalled(context: Context) -> Any:
    """Return the memory that the rule had after the last round; None at first."""
    if MEMORY not in context.state:
        return None
    return untabled({key: tensor_in(array) for key, array in context.state[MEMORY].items()})


def in_rows(
    memory: Any, width: int
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]] | None:
    """Return a memory's vectors as matrices (k, width), and what makes a memory of others.

    None where it remembers vectors of another width, which no basis of the updates holds.
    """
    table = table_of(memory)
    vectors = {key: value for key, value in table.items() if value.is_floating_point()}
    if any(value.shape[-1:] != (width,) for value in vectors.values()):
        return None

    def recall(matrices: Sequence[Tensor]) -> Any:
        shapes = [value.shape[:-1] for value in vectors.values()]
        moved = [m.reshape(*k, m.shape[-1]) for m, k in zip(matrices, shapes, strict=True)]
        return untabled(table | dict(zip(vectors, moved, strict=True)))

    return [value.reshape(-1, width) for value in vectors.values()], recall


def table_of(memory: Any) -> dict[str, Tensor]:
    """Return a memory as a table of tensors; an empty one where there is none."""
    if memory is None:
        return {}
    return {ALONE: memory} if isinstance(memory, Tensor) else memory


def untabled(table: dict[str, Tensor]) -> Any:
    """Return the memory that ``table_of`` made a table of."""
    if not table:
        return None
    return table[ALONE] if list(table) == [ALONE] else table
