"""A stock Flower strategy, or a user's own, in the place of ours: same clients, same attacks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrobust.experiment.schema import Experiment
from fedrobust.failures import Refusal, blamed
from fedrobust.flower import array_of, tensor_of
from fedrobust.flower.layers import Shapes, from_layers, to_layers
from fedrobust.simulation import stragglers
from strategies.base import RecordedStrategy, Row
from strategies.replies import Round, listen
from strategies.robust import impact_of


class StockStrategy(RecordedStrategy):
    """Let any Flower strategy lead fedrobust's clients.

    The strategy sees what a Flower app would show it: whole models as named layers, and
    ``num-examples`` and ``loss`` among the metrics. It samples the clients and takes the server's
    step; ``server.momentum`` is its own affair.

    Parameters
    ----------
    strategy
        The strategy; it is copied, so that one object can lead several runs.
    experiment
        ``server.lr`` turns a client's update into its model: w - lr update.
    shapes
        Name -> shape of each layer, in the order of the flat vector.
    clients, most_examples, members, on_row
        As in ``RobustStrategy``.

    Notes
    -----
    Replies are screened before the strategy sees them: the comparison is between rules, not
    between programs that survive a malformed reply and those that do not.
    """

    def __init__(
        self,
        strategy: Strategy,
        experiment: Experiment,
        *,
        shapes: Shapes,
        clients: Mapping[int, int],
        most_examples: int,
        members: Callable[[int], Iterable[int]] = lambda round: (),
        on_row: Callable[[Row], None] = lambda row: None,
    ) -> None:
        super().__init__(on_row)
        self._inner = copy.deepcopy(strategy)
        self._experiment = experiment
        self._shapes = dict(shapes)
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._members = members
        self._model: Tensor | None = None
        self._sent: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask whom the strategy asks; its named layers travel as our flat vector."""
        self._started = time.perf_counter()
        self._model = tensor_of(arrays["model"])
        layers = to_layers(self._model, self._shapes)
        settings = ConfigRecord({**config})
        with blamed("strategy", type(self._inner).__name__):
            asked = list(self._inner.configure_train(server_round, layers, settings, grid))
        settings = ConfigRecord({**config, "round": server_round})
        content = RecordDict({"arrays": arrays, "config": settings})
        ttl = stragglers.wall(self._experiment)
        nodes = [message.metadata.dst_node_id for message in asked]
        group = str(server_round)
        self._sent = [Message(content, node, "train", group_id=group, ttl=ttl) for node in nodes]
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies and let the strategy aggregate the clients' models."""
        assert self._model is not None, "aggregate_train follows configure_train"
        heard = listen(
            replies,
            self._sent,
            clients=self._clients,
            d=self._model.numel(),
            most_examples=self._most_examples,
            largest=self._experiment.server.largest,
        )
        self._row = {
            "round": server_round,
            "replies": len(heard.accepted),
            "rejected": heard.rejected,
            "bytes_down": self._model.nbytes * len(self._sent),
            "bytes_up": sum(reply.update.nbytes for reply in heard.accepted.values()),
        }
        try:
            with blamed("strategy", type(self._inner).__name__, but=(Refusal,)):
                arrays, _ = self._inner.aggregate_train(server_round, self._as_models(heard))
                if arrays is None:  # how a Flower strategy refuses: too few replies, for one
                    raise Refusal("the strategy returned no model")
                stepped = from_layers(arrays, self._shapes)
        except Refusal as error:
            self._row["kept"] = str(error)
            return None, None
        self._row |= self._report(server_round, heard, stepped)
        return array_of(model=stepped), None

    def _as_models(self, heard: Round) -> list[Message]:
        """Turn accepted updates into the replies of a stock Flower client."""
        asked = {self._clients[m.metadata.dst_node_id]: m for m in self._sent}
        return [self._as_model(asked[client], heard.accepted[client]) for client in heard.clients]

    def _as_model(self, asked: Message, reply: Any) -> Message:
        local = self._model - self._experiment.server.lr * reply.update
        metrics = MetricRecord({"num-examples": reply.examples, "loss": reply.loss})
        content = RecordDict({"arrays": to_layers(local, self._shapes), "metrics": metrics})
        return Message(content, reply_to=asked)

    def _report(self, server_round: int, heard: Round, stepped: Tensor) -> Row:
        """Describe the step as our strategy does: train loss, who was bad, how far they got."""
        bad = set(self._members(server_round))
        honest = [client for client in heard.clients if client not in bad]
        losses = [heard.accepted[client].loss for client in honest]
        row: Row = {"train_loss": round(sum(losses) / len(losses), 6) if losses else None}
        if bad:
            row["byzantine"] = sorted(bad)
            if honest:
                updates = heard.matrix()[[heard.clients.index(c) for c in honest]]
                step = (self._model - stepped) / self._experiment.server.lr  # type: ignore[operator]
                row["impact"] = impact_of(step, updates)
        return row
