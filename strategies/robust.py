"""One strategy for every rule and pre-aggregator: screen, aggregate, step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import Tensor

from fedrobust.aggregation.weighting import shares
from fedrobust.failures import Refusal
from fedrobust.flower import UpdateMatrix, matrix_of
from fedrobust.flower.chosen_rule import ChosenRule
from fedrobust.flower.quarantine import struck
from fedrobust.flower.replies import ABSENT, collect
from fedrobust.flower.rule_spelling import Rule
from fedrobust.secret import fresh
from fedrobust.seeds import generator
from fedrobust.spec import Spec, suggest
from fedrobust.training import StepState
from strategies.base import RecordedStrategy, Row
from strategies.parts import Aggregated, Memory, Parts, Round, Server, sgd
from strategies.robust_settings import check_settings, counted
from strategies.sampling import Sampling
from strategies.transport import REPLIES, Model, NamedLayers, Reply


class RobustStrategy(RecordedStrategy):
    """Aggregate the screened replies with a robust rule and take one server step.

    It starts as any strategy of Flower does, with ``ArrayRecord(model.state_dict())`` and any
    ClientApp that answers "train" with one ArrayRecord.

    Parameters
    ----------
    rule, pre
        A rule and its pre-aggregators: ``"median"``, ``"nnm+krum:f=2"``,
        ``{"name": "krum", "f": 2}``, or a function (n, d) -> (d,).
    server_lr, server_momentum
        v <- momentum v + aggregate; w <- w - lr v, where an update is the global model minus the
        client's. With the defaults the model becomes the aggregate of the clients' models.
    deadline
        Seconds to wait for the replies of a round; None: the ``timeout`` of ``start`` alone.
    min_replies
        With fewer accepted replies, or fewer than the rule needs, the model is kept.
    largest
        An update with a greater magnitude than this is refused.
    replies
        "weights": clients answer with their model, as stock Flower apps do. "updates": with their
        model minus the global one, under the same layer names.
    weights
        How much each node counts: "equal", or ``{"name": "attested", "table": {node id: weight}}``
        (or ``"file"``), ``{"name": "truncated", "share": 0.3}`` over what nodes claim as
        ``num-examples``, "claimed" with the plain mean; see ``fedrobust.aggregation.WEIGHTINGS``.
    fraction_train, min_available_nodes
        Share of the connected nodes that is asked in a round, drawn anew each time; and how many
        nodes must be connected before a round begins.
    seed
        For what is drawn; None draws one from the system's entropy, so that no client can foresee
        who is asked or what a rule draws.

    Attributes
    ----------
    history
        One table a round: ``round``, ``replies`` (how many were accepted), ``rejected`` (nodes and
        reasons), ``weights`` (by node, if the rule has any), ``client_weights`` (shares by node,
        unless all count alike), ``kept`` (why the model was kept).

    Raises
    ------
    SpecError
        For an unknown rule, pre-aggregator or setting of one.
    ValueError
        For a value out of range; in the first round, if fewer nodes are asked than the rule needs.

    Notes
    -----
    A bad reply costs its sender the vote and nothing else. What clients claim of themselves
    (``num-examples``) is no weight unless ``weights`` says so; their metrics are reported
    as medians. Nobody is asked to evaluate: give ``start`` an ``evaluate_fn``.
    """

    def __init__(
        self,
        *,
        rule: Rule,
        pre: Sequence[Spec] = (),
        server_lr: float = 1.0,
        server_momentum: float = 0.0,
        deadline: float | None = None,
        min_replies: int = 1,
        largest: float = 1e10,
        replies: str = "weights",
        weights: Spec = "equal",
        fraction_train: float = 1.0,
        min_available_nodes: int = 2,
        seed: int | None = None,
    ) -> None:
        if replies not in REPLIES:
            raise ValueError(f"unknown replies {replies!r}; {suggest(replies, list(REPLIES))}")
        check_settings(server_lr, server_momentum, deadline, min_replies, largest)
        chosen = ChosenRule.of(rule, pre, weights)
        drawn = fresh() if seed is None else seed
        self._take(
            Parts(
                rule=chosen.built,
                fitting=chosen.fitting,
                transport=NamedLayers(replies=replies, largest=largest),
                asked=Sampling(
                    fraction=fraction_train,
                    available=min_available_nodes,
                    deadline=deadline,
                    seed=drawn,
                    check=chosen.check,
                ),
                step=partial(sgd, server_lr, server_momentum),
                seed=drawn,
                deadline=deadline,
                min_replies=min_replies,
                counted=partial(counted, chosen),
            ),
            logs=True,
        )

    @classmethod
    def from_parts(cls, parts: Parts) -> RobustStrategy:
        """Put a strategy together from parts of your own."""
        made = cls.__new__(cls)  # past __init__, which reads users' settings
        made._take(parts, logs=False)
        return made

    def _take(self, parts: Parts, *, logs: bool) -> None:
        super().__init__()
        self._parts = parts
        self._logs = logs
        self._memory = Memory(parts.rule.init())
        self._own = UpdateMatrix()  # where updates are gathered that arrived as bytes
        self._round: Round | None = None
        self.history: list[Row] = []

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower's own ``Strategy.start`` does, with the deadline of this one.

        The result holds the initial arrays where no round took a step.
        """
        # After the arrays come num_rounds and timeout (Flower 1.42): with two of them it was given.
        if self._parts.deadline is not None and len(args) < 2:
            kwargs.setdefault("timeout", self._parts.deadline)
        result = super().start(grid, initial_arrays, *args, **kwargs)
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send every asked node what it lacks; messages of the same kind share one content."""
        parts = self._parts
        clients = dict(parts.asked(server_round, grid))
        model = self._opened(server_round, arrays)
        contents = parts.transport.contents(
            clients.values(), model, self._memory.step, config, server_round
        )
        group, ttl = str(server_round), parts.deadline
        matrix = matrix_of(grid) or self._own
        matrix.begin()
        sent = [
            Message(contents[client], node, "train", group_id=group, ttl=ttl)
            for node, client in clients.items()
        ]
        self._round = Round(
            number=server_round,
            model=model,
            clients=clients,
            sent=tuple(sent),
            matrix=matrix,
            grid=grid,
        )
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, aggregate what is left, and step."""
        sent, parts = self._round, self._parts
        if sent is None:
            raise RuntimeError("aggregate_train follows configure_train")
        heard = collect(sent.sent, replies, partial(parts.transport.read, model=sent.model))
        # By client, not by arrival: sums of floats, and rules with memory, depend on the order.
        accepted = sorted((sent.clients[node], node) for node in heard.accepted)
        read = [heard.accepted[node] for _, node in accepted]
        row = {
            "round": server_round,
            "replies": len(read),
            "rejected": heard.rejected(sent.clients),
            **parts.costs(sent, read),
            **struck(sent.grid, heard.reasons(sent.clients), sent.clients),
        }
        metrics = parts.transport.metrics(read)
        # Before the step: replicas stand at the version that was sent, also where the model is
        # kept.
        parts.transport.heard([client for client, _ in accepted], self._memory.step.step)
        malformed = sum(not reason.startswith(ABSENT) for reason in heard.refused.values())
        try:
            aggregated = self._aggregated(sent, accepted, read, malformed)
            vector, self._memory = self._stepped(sent, aggregated)
        except Refusal as error:  # the rule's own refusal: too few updates, nothing finite
            self._close(row | {"kept": str(error)})
            return None, metrics
        self._close(row | parts.report(aggregated))
        stepped = Model(vector, parts.transport.beside(sent.model, read))
        return parts.transport.packed(stepped), metrics

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on: the rule's memory, the moments, who holds what."""
        step = self._memory.step
        return {
            "memory": self._memory.rule,
            "step": step.step,
            "moments": list(step.moments),
            "transport": self._parts.transport.snapshot(),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        step = StepState(tree["step"], tuple(tree["moments"]))
        self._memory = Memory(tree["memory"], step)
        self._parts.transport.restore(tree["transport"])

    def _opened(self, server_round: int, arrays: ArrayRecord) -> Model:
        """Read the model; where a new phase begins, forget all that belongs to the last one."""
        model = self._parts.transport.opened(arrays)
        anew = self._parts.restart(server_round, model.vector)
        if anew is None:
            return model
        self._memory = Memory(self._parts.rule.init())
        self._parts.transport.forget()
        return Model(anew, model.beside)

    def _aggregated(
        self,
        sent: Round,
        accepted: Sequence[tuple[int, int]],
        read: Sequence[Reply],
        malformed: int,
    ) -> Aggregated:
        """Apply the rule to the updates, in the order of the clients."""
        parts, clients = self._parts, [client for client, _ in accepted]
        if len(read) < parts.min_replies:
            raise Refusal(f"min_replies asks for {parts.min_replies}, got {len(read)}")
        updates = sent.matrix.gather([reply.update for reply in read])
        if parts.form is not None:
            updates = parts.form.seen(updates, sent.model.vector)
        rule = parts.fitting(len(read), malformed) if parts.fitting else parts.rule
        nodes = [node for _, node in accepted]
        given = parts.counted(nodes, clients, read)
        outcome = rule.apply(
            parts.weigh(updates, read),
            self._memory.rule,
            generator(parts.seed, "rule", round=sent.number),
            clients=clients,
            server=self._offers(sent),
            weights=given,
        )
        return Aggregated(
            server_round=sent.number,
            nodes=nodes,
            clients=clients,
            shares=None if given is None else shares(given, len(nodes)),
            replies=read,
            updates=updates,
            outcome=outcome,
        )

    def _offers(self, sent: Round) -> Server | None:
        """Return what the rule may ask, in the form in which it is shown the updates."""
        parts, start = self._parts, sent.model.vector
        known: Server = {"layers": lambda: parts.transport.layers, "model": lambda: start}
        server = {**known, **(parts.offers(start, sent.number) or {})}
        return server if parts.form is None else parts.form.offered(server, start)

    def _stepped(self, sent: Round, aggregated: Aggregated) -> tuple[Tensor, Memory]:
        """Take the server's step with the aggregate, as the clients' replicas will take it."""
        parts, outcome, start = self._parts, aggregated.outcome, sent.model.vector
        found = outcome.aggregate
        if parts.form is not None:
            found = parts.form.sent(found, start)
        aggregate, packet = parts.transport.as_sent(found, sent.number)
        aggregate = aggregate.to(start.device)  # what was a packet is on the CPU
        vector, state = parts.step(start, aggregate, self._memory.step, sent.number)
        parts.transport.stepped(state.step, packet)
        return vector, Memory(outcome.state, state)

    def _close(self, row: Row) -> None:
        self._row = row
        if not self._logs:
            return  # the laboratory writes the rows itself, together with the evaluation
        self.history.append(row)
        for entry in row["rejected"]:
            log(INFO, "reply of node %s refused: %s", entry["node"], entry["reason"])
        if "kept" in row:
            log(WARNING, "round %s keeps the model: %s", row["round"], row["kept"])
