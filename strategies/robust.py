"""One strategy for every rule and pre-aggregator: screen, aggregate, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrobust import aggregation, fleet
from fedrobust.attacks import bypass, impact, spread
from fedrobust.config import Experiment
from fedrobust.flower import array_of, tensor_of
from fedrobust.seeds import generator
from fedrobust.vector import joined
from strategies.listening import Round, listen
from strategies.trusted import OwnData

Row = dict[str, Any]


class RobustStrategy(Strategy):
    """Aggregate screened replies with a robust rule and take one server step.

    Parameters
    ----------
    experiment
        Names the rule, its pre-aggregators and the server's settings.
    clients
        Node id -> client, from the roll call. Votes are per node: one reply each.
    most_examples
        Size of the whole training set; no reply may claim more.
    members
        Round -> the clients known to be Byzantine, for the report only (simulation).
    on_row
        Called with each round's row when it is complete.
    own_data
        What the server knows itself, for rules that trust it.

    Notes
    -----
    A bad reply costs its sender the vote. With fewer replies than the rule needs the model is
    kept, and the row says so. What clients claim of themselves is never a weight.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        clients: Mapping[int, int],
        most_examples: int,
        members: Callable[[int], Iterable[int]] = lambda round: (),
        on_row: Callable[[Row], None] = lambda row: None,
        own_data: OwnData | None = None,
    ) -> None:
        self._experiment = experiment
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._members = members
        self._on_row = on_row
        self._own_data = own_data
        self._rule = aggregation.build(experiment.rule, pre=experiment.pre)
        self._memory = self._rule.init()
        self._velocity: Tensor | None = None
        self._model: Tensor | None = None
        self._matrix: Tensor | None = None  # kept: fresh pages cost more than the copy
        self._sent: list[Message] = []
        self._row: Row = {"round": 0}
        self._started = time.perf_counter()

    def summary(self) -> None:
        """Say nothing: the caller prints the resolved experiment."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the model to every node; all messages share one content."""
        self._started = time.perf_counter()
        self._model = tensor_of(arrays["model"])
        setting = ConfigRecord({**config, "round": server_round})
        content = RecordDict({"arrays": arrays, "config": setting})
        ttl = fleet.wall(self._experiment)
        asked = set(fleet.participants(self._experiment, server_round))
        self._sent = [
            Message(content, node, "train", group_id=str(server_round), ttl=ttl)
            for node, client in self._clients.items()
            if client in asked
        ]
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, aggregate what is left, and step."""
        assert self._model is not None, "aggregate_train follows configure_train"
        heard = self._screen(replies)
        self._row = {
            "round": server_round,
            "replies": len(heard.accepted),
            "rejected": heard.rejected,
            "bytes_down": self._model.nbytes * len(self._sent),
            "bytes_up": sum(reply.update.nbytes for reply in heard.accepted.values()),
        }
        try:
            stepped = self._step(server_round, heard)
        except ValueError as error:  # the rule's own refusal: too few updates, nothing finite
            self._row["kept"] = str(error)
            return None, None
        return array_of(model=stepped), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody: the evaluation is central."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: the evaluation is central."""
        return None

    def close_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Complete the round's row with the central evaluation and hand it out."""
        self._row |= {**metrics, "seconds": round(time.perf_counter() - self._started, 4)}
        self._on_row(self._row)
        self._row = {"round": server_round + 1}

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on: the rule's memory and the server's velocity."""
        return {"memory": self._memory, "velocity": self._velocity}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._memory, self._velocity = tree["memory"], tree["velocity"]

    def _screen(self, replies: Iterable[Message]) -> Round:
        return listen(
            replies,
            self._sent,
            clients=self._clients,
            d=self._model.numel(),  # type: ignore[union-attr]
            most_examples=self._most_examples,
            largest=self._experiment.server.largest,
        )

    def _step(self, server_round: int, heard: Round) -> Tensor:
        """Step: v <- momentum v + aggregate, w <- w - lr v."""
        server = self._experiment.server
        if len(heard.accepted) < server.min_replies:
            raise ValueError(
                f"server.min_replies asks for {server.min_replies}, got {len(heard.accepted)}"
            )
        updates = joined(heard.rows)
        if updates is None:
            updates = self._matrix = heard.matrix(self._matrix)
        source = generator(self._experiment.seed, "rule", round=server_round)
        own = self._own_data.offers(self._model, server_round) if self._own_data else None  # type: ignore[arg-type]
        outcome = self._rule.apply(updates, self._memory, source, clients=heard.clients, server=own)
        velocity = outcome.aggregate
        if self._velocity is not None:
            velocity = server.momentum * self._velocity + velocity
        stepped = self._model - server.lr * velocity  # type: ignore[operator]
        if not bool(torch.isfinite(stepped).all()):
            raise ValueError("the step would make the model non-finite")
        self._memory, self._velocity = outcome.state, velocity
        self._row |= self._report(server_round, heard, updates, outcome)
        return stepped

    def _report(self, server_round: int, heard: Round, updates: Tensor, outcome: Any) -> Row:
        """Describe who counted how much, and how much of that was the attackers'."""
        clients = heard.clients
        bad = set(self._members(server_round))
        malicious = torch.tensor([client in bad for client in clients])
        losses = [heard.accepted[c].loss for c in clients if c not in bad]
        row: Row = {"train_loss": round(sum(losses) / len(losses), 6) if losses else None}
        if outcome.weights is not None:
            weight = dict(zip(clients, outcome.weights.tolist(), strict=True))
            places = sorted(self._clients.values())
            row["weights"] = [round(weight[c], 6) if c in weight else None for c in places]
        if bad:
            row |= {"byzantine": sorted(bad)}
            if outcome.weights is not None:
                row["bypass"] = bypass(outcome.weights, malicious)
            if not bool(malicious.all()):
                row["impact"] = impact_of(outcome.aggregate, updates[~malicious])
        return row


def impact_of(aggregate: Tensor, honest: Tensor) -> dict[str, float]:
    """How far the aggregate is from the honest mean, in honest spreads, and its direction."""
    measured = impact(aggregate, honest.mean(0), spread=spread(honest))
    return {
        "deviation": round(min(measured.deviation, 1e9), 6),
        "cosine": round(measured.cosine, 6),
    }
