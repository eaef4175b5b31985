"""The one core of ``Robust`` and ``RobustGrid``: a round's replies in, as many alike out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedrobust.aggregation import Outcome
from fedrobust.aggregation.weighting import shares
from fedrobust.failures import Refusal
from fedrobust.flower.chosen_rule import ChosenRule
from fedrobust.flower.model_replies import (
    Key,
    Layout,
    ModelReply,
    Refused,
    Sent,
    Values,
    agreed,
    difference,
    layout_of,
    read_reply,
)
from fedrobust.flower.model_vectors import (
    Known,
    arrays_of,
    as_whole,
    invented,
    known_of,
    matrix_of,
    starts_of,
    usual_dtype,
)
from fedrobust.flower.replies import ABSENT
from fedrobust.flower.reply_metrics import claim_of, own_configs, shared_metrics
from fedrobust.flower.rule_spelling import Rule
from fedrobust.secret import fresh
from fedrobust.seeds import generator
from fedrobust.spec import Spec, split

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["round", "node", "accepted", "weight", "reason"]
SHARE = "client_weight"


@dataclass(frozen=True)
class Aggregated:
    """One round.

    Attributes
    ----------
    replies
        One for each accepted reply, all with the same arrays and metrics; none where nothing could
        be read.
    refused
        Node -> why its reply lost its vote.
    kept
        Why the round takes no step; empty where it takes one.
    others
        Running statistics and integer arrays, by key: each entry the median of the clients.
    """

    replies: list[Message] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    kept: str = ""
    others: Values = field(default_factory=dict)


class ReplyAggregator:
    """Aggregate the replies of anybody's clients with a rule.

    Every accepted reply is replaced by the aggregate, so that a strategy counts as many replies as
    there were, and averages equal things. Floating arrays are coordinates; running statistics of
    normalisation layers and integer or boolean arrays become medians, in the type that they had in
    the first round. What most replies agree on (records, layers, shapes) is what a reply must hold.

    Parameters
    ----------
    rule, pre
        See ``read_rule``.
    seed
        For rules that draw; None draws one from the system's entropy, so that no client can
        foresee it.

    weights
        How much each node counts, a spec of ``fedrobust.aggregation.WEIGHTINGS``.
    claim
        The metric in which a node claims how many examples it holds.

    Raises
    ------
    SpecError
        For an unknown rule or setting, or a rule that cannot be weighted so.
    """

    def __init__(
        self,
        rule: Rule,
        pre: Sequence[Spec] = (),
        seed: int | None = None,
        weights: Spec = "equal",
        claim: str = "num-examples",
    ) -> None:
        self._chosen = ChosenRule.of(rule, pre, weights)
        self._claim = claim
        self._columns = COLUMNS if split(weights)[0] == "equal" else [*COLUMNS, SHARE]
        self.rule, self.pre = self._chosen.rule, self._chosen.pre
        self.name, self._built = self._chosen.name, self._chosen.built
        self._seed = fresh() if seed is None else seed
        self._rows: list[dict[str, Any]] = []
        self._clients: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what a run leaves in the rule; the history stays."""
        self._memory = self._built.init()
        self._integers: dict[Key, np.dtype] = {}
        self.steps = 0

    @property
    def history(self) -> pd.DataFrame:
        """One row a node and round: round, node, accepted, weight, reason.

        ``weight`` is NaN where the rule takes values apart from their updates; ``reason`` says why
        a reply was refused, or why the round kept the model. With weights there is a column
        ``client_weight``: each node's share of 1 before the rule looked at it.
        """
        import pandas as pd  # half a second to import: only who asks pays

        return pd.DataFrame(self._rows, columns=self._columns)

    def check(self, n: int) -> None:
        """Check that n updates are enough for the rule.

        Raises
        ------
        ValueError
            ``krum with f=5 needs at least 13 updates, got 12``.
        """
        self._chosen.check(n)

    def rehearse(self, updates: Tensor) -> Tensor:
        """Return the rule's aggregate of some updates (n, d), with fresh memory: nothing is kept.

        Raises
        ------
        ValueError
            If they are too few for the rule.
        """
        self.check(len(updates))
        source = generator(self._seed, "rehearsal")
        known = invented(updates)
        return self._built.apply(updates, self._built.init(), source, server=known).aggregate

    def aggregate(self, sent: Sent, replies: Iterable[Message], server_round: int) -> Aggregated:
        """Aggregate one round; nothing that a client sends raises."""
        accepted, layout, refused = self._screened(sent, replies)
        if layout is None or not layout.coordinates:
            reason = "no reply was left to aggregate"
            if accepted:
                reason = "no reply holds floating arrays"
            elif len(refused) < len(sent.messages):
                reason = "no layout of records and layers has more than half of the replies"
            return self._noted(server_round, Aggregated(refused=refused, kept=reason), {})
        starts = starts_of(accepted, layout, sent)
        rows = matrix_of(accepted, layout, starts)
        malformed = sum(not reason.startswith(ABSENT) for reason in refused.values())
        known = known_of(layout, starts)
        outcome, kept, counted = self._outcome(rows, accepted, malformed, server_round, known)
        others = {key: self._median(key, accepted) for key in layout.others}
        step = outcome.aggregate if outcome else torch.zeros(())
        handed = _replies(accepted, layout, starts, step, others, sent)
        weights = _weights(accepted, outcome)
        self.steps += outcome is not None
        return self._noted(
            server_round, Aggregated(handed, refused, kept, others), weights, counted
        )

    def _screened(
        self, sent: Sent, replies: Iterable[Message]
    ) -> tuple[list[ModelReply], Layout | None, dict[int, str]]:
        """Read the replies and drop those that differ from what most of them hold."""
        for arrays in {id(arrays): arrays for arrays in sent.arrays.values()}.values():
            self._remember(arrays)
        kept, refused = sent.kept(replies)
        readable = []
        for node in sorted(kept):  # the order of replies must not matter
            try:
                readable.append(read_reply(kept[node], node))
            except Refused as reason:
                refused[node] = str(reason)
        layouts = [layout_of(reply.values, self._integers) for reply in readable]
        layout = agreed(layouts)
        if layout is None:
            return [], None, refused
        accepted = []
        for reply, own in zip(readable, layouts, strict=True):
            if own.slots == layout.slots:
                accepted.append(reply)
            else:
                refused[reply.node] = difference(layout, own)
        for key in layout.slots:
            self._remember({key: accepted[0].values[key]})
        return accepted, layout, refused

    def _remember(self, values: Mapping[Key, np.ndarray]) -> None:
        """Note the first type of whole numbers: averaging strategies send them back as floats."""
        for key, array in values.items():
            if array.dtype.kind in "iub":
                self._integers.setdefault(key, array.dtype)

    def _outcome(
        self,
        rows: Tensor,
        accepted: list[ModelReply],
        malformed: int,
        server_round: int,
        known: Known,
    ) -> tuple[Outcome | None, str, dict[int, float]]:
        nodes = [reply.node for reply in accepted]
        clients = [self._clients.setdefault(r.node, len(self._clients)) for r in accepted]
        source = generator(self._seed, "rule", round=server_round)
        try:
            built = self._chosen.fitting(len(rows), malformed)
            claims = [claim_of(reply.content, self._claim) for reply in accepted]
            counted = self._chosen.weigh(nodes, claims)
            given = {} if counted is None else {"weights": shares(counted, len(nodes))}
            outcome = built.apply(
                rows, self._memory, source, clients=clients, server=known, **given
            )
        except Refusal as error:
            return None, str(error), {}
        if not torch.isfinite(outcome.aggregate).all():
            return None, f"{self.name} returned values that are not finite", {}
        # Not before: a round that takes no step leaves the memory as it was.
        self._memory = outcome.state
        found = given.get("weights")
        return outcome, "", {} if found is None else dict(zip(nodes, found.tolist(), strict=True))

    def _median(self, key: Key, accepted: list[ModelReply]) -> np.ndarray:
        stack = np.stack([reply.values[key] for reply in accepted])
        # The lower of two middle values, not their mean: whole numbers stay whole.
        middle = np.sort(stack, axis=0)[(len(stack) - 1) // 2]
        return as_whole(middle, self._integers[key]) if key in self._integers else middle

    def _noted(
        self,
        server_round: int,
        result: Aggregated,
        weights: dict[int, float],
        counted: Mapping[int, float] = MappingProxyType({}),
    ) -> Aggregated:
        for node in sorted(weights.keys() | result.refused.keys()):
            accepted = node not in result.refused
            reason = result.kept if accepted else result.refused[node]
            weight = 0.0 if result.kept else weights.get(node, 0.0)
            row = (server_round, node, accepted, weight, reason)
            share = {SHARE: counted.get(node, 0.0)} if len(self._columns) > len(COLUMNS) else {}
            self._rows.append(dict(zip(COLUMNS, row, strict=True)) | share)
        return result


def _replies(
    accepted: list[ModelReply],
    layout: Layout,
    starts: dict[int, dict[Key, np.ndarray]],
    step: Tensor,
    others: Values,
    sent: Sent,
) -> list[Message]:
    """Make as many replies as were accepted, each its node's start plus the aggregate."""
    contents = [reply.content for reply in accepted]
    metrics, configs = shared_metrics(contents), own_configs(contents)
    dtypes = {key: usual_dtype(key, accepted) for key in layout.coordinates}
    arrays: dict[int, dict[Key, Array]] = {}
    replies = []
    for reply, config in zip(accepted, configs, strict=True):
        start = starts[reply.node]
        if id(start) not in arrays:
            arrays[id(start)] = arrays_of(layout, start, step, others, dtypes)
        content = RecordDict()
        for (record, name), array in arrays[id(start)].items():  # records anew: strategies pop
            if record not in content:
                content[record] = ArrayRecord()
            content.array_records[record][name] = array
        for name, held in metrics.items():
            content[name] = MetricRecord(dict(held))
        for name, own in config.items():
            content[name] = own
        replies.append(Message(content, reply_to=sent.messages[reply.node]))
    return replies


def _weights(accepted: list[ModelReply], outcome: Outcome | None) -> dict[int, float]:
    nodes = [reply.node for reply in accepted]
    if outcome is None or outcome.weights is None:
        return dict.fromkeys(nodes, float("nan"))
    return dict(zip(nodes, outcome.weights.tolist(), strict=True))
