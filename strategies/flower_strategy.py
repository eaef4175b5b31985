"""A stock Flower strategy, or a user's own, in the place of ours: same clients, same attacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrobust.failures import Refusal, blamed
from fedrobust.flower import array_of, screen, tensor_of
from fedrobust.flower.layers import Shapes, from_layers, to_layers
from fedrobust.flower.replies import collect
from fedrobust.flower.screening import Reply
from fedrobust.flower.wrapping import WrappedGrid
from strategies.base import RecordedStrategy, Row
from strategies.impact import honest_loss, impact_row


class _ClientsAlone(WrappedGrid):
    """A grid that shows a strategy the run's clients alone, whoever else is connected.

    A strategy samples among the nodes of the grid: strangers among them would take the places of
    clients in its sample.
    """

    def __init__(self, inner: Grid, clients: Mapping[int, int]) -> None:
        super().__init__(inner)
        self._clients = clients

    def get_node_ids(self) -> list[int]:
        """Return the clients among the inner grid's nodes."""
        return [node for node in super().get_node_ids() if node in self._clients]

    def get_nodes(self) -> list[Any]:
        """Return what the inner grid knows of the clients."""
        return [known for known in super().get_nodes() if int(known.node_id) in self._clients]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Hand the messages on."""
        return list(self.inner.send_and_receive(messages, timeout=timeout))


@dataclass(frozen=True)
class _Round:
    """One round that is under way: the model, and what was sent."""

    model: Tensor
    sent: tuple[Message, ...]


class StockStrategy(RecordedStrategy):
    """Let any Flower strategy lead fedrobust's clients.

    The strategy sees what a Flower app would show it: whole models as named layers, and
    ``num-examples`` and ``loss`` among the metrics. It samples the clients and takes the server's
    step; ``server.momentum`` is its own affair.

    Parameters
    ----------
    strategy
        The strategy; it is copied, so that one object can lead several runs.
    server_lr
        Turns a client's update into its model: w - lr update.
    deadline
        Seconds after which a message expires.
    largest
        An update with a greater magnitude is refused.
    shapes
        Name -> shape of each layer, in the order of the flat vector.
    clients
        Node id -> client.
    most_examples
        Size of the whole training set; no reply may claim more.
    members
        Round -> the clients known to be Byzantine, for the report only.

    Notes
    -----
    Replies are screened before the strategy sees them: the comparison is between rules, not
    between programs that survive a malformed reply and those that do not.
    """

    unresumable: ClassVar[str] = (
        "a stock Flower strategy keeps its memory to itself, so that its runs start anew:"
        " run again without --resume"
    )

    def __init__(
        self,
        strategy: Strategy,
        *,
        server_lr: float,
        deadline: float,
        largest: float,
        shapes: Shapes,
        clients: Mapping[int, int],
        most_examples: int,
        members: Callable[[int], Iterable[int]] = lambda server_round: (),
    ) -> None:
        super().__init__()
        self._inner = copy.deepcopy(strategy)
        self._lr = server_lr
        self._deadline = deadline
        self._largest = largest
        self._shapes = dict(shapes)
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._members = members
        self._round: _Round | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask whom the strategy asks; its named layers travel as our flat vector."""
        model = tensor_of(arrays["model"])
        layers = to_layers(model, self._shapes)
        # A copy: Flower's FedAvg writes "server-round" into the one it is given (seen in 1.42).
        settings = ConfigRecord({**config})
        with blamed("strategy", type(self._inner).__name__):
            # A list at once: a strategy that yields its messages would raise outside of the blame.
            seen = _ClientsAlone(grid, self._clients)
            asked = list(self._inner.configure_train(server_round, layers, settings, seen))
        settings = ConfigRecord({**config, "round": server_round})
        content = RecordDict({"arrays": arrays, "config": settings})
        # A strategy may know nodes from elsewhere: those that are no clients are not asked.
        nodes = [n for m in asked if (n := m.metadata.dst_node_id) in self._clients]
        group, ttl = str(server_round), self._deadline
        sent = [Message(content, node, "train", group_id=group, ttl=ttl) for node in nodes]
        self._round = _Round(model, tuple(sent))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies and let the strategy aggregate the clients' models."""
        sent = self._round
        if sent is None:
            raise RuntimeError("aggregate_train follows configure_train")
        read = partial(
            screen,
            d=sent.model.numel(),
            most_examples=self._most_examples,
            largest=self._largest,
        )
        heard = collect(sent.sent, replies, read)
        accepted = {self._clients[node]: reply for node, reply in heard.accepted.items()}
        # By client, not by arrival: sums of floats depend on the order.
        accepted = dict(sorted(accepted.items()))
        row: Row = {
            "round": server_round,
            "replies": len(accepted),
            "rejected": heard.rejected(self._clients),
            "bytes_down": sent.model.nbytes * len(sent.sent),
            "bytes_up": sum(reply.update.nbytes for reply in accepted.values()),
        }
        try:
            with blamed("strategy", type(self._inner).__name__, but=(Refusal,)):
                stepped = self._aggregated(server_round, self._as_models(sent, accepted))
        except Refusal as error:
            self._row = row | {"kept": str(error)}
            return None, None
        bad = set(self._members(server_round))
        self._row = row | self._report(bad, sent.model, stepped, list(accepted), accepted)
        return array_of(model=stepped), None

    def _aggregated(self, server_round: int, models: list[Message]) -> Tensor:
        arrays, _ = self._inner.aggregate_train(server_round, models)
        if arrays is None:  # how a Flower strategy refuses: too few replies, for one
            raise Refusal("the strategy returned no model")
        return from_layers(arrays, self._shapes)

    def _as_models(self, sent: _Round, accepted: Mapping[int, Reply]) -> list[Message]:
        """Turn accepted updates into the replies of a stock Flower client."""
        asked = {self._clients[m.metadata.dst_node_id]: m for m in sent.sent}
        return [self._as_model(sent.model, asked[c], reply) for c, reply in accepted.items()]

    def _as_model(self, model: Tensor, asked: Message, reply: Any) -> Message:
        local = model - self._lr * reply.update
        metrics = MetricRecord({"num-examples": reply.examples, "loss": reply.loss})
        content = RecordDict({"arrays": to_layers(local, self._shapes), "metrics": metrics})
        return Message(content, reply_to=asked)

    def _report(
        self,
        bad: set[int],
        model: Tensor,
        stepped: Tensor,
        clients: Sequence[int],
        accepted: Mapping[int, Reply],
    ) -> Row:
        """Describe the step as our strategy does: train loss, who was bad, how far they got."""
        row: Row = {"train_loss": honest_loss(clients, list(accepted.values()), bad)}
        rows = [reply.update for reply in accepted.values()]
        updates = torch.stack(rows) if rows else model.new_empty(0, model.numel())
        # The whole step in units of an update: the strategy's own rate and momentum are part of it.
        return row | impact_row(clients, bad, updates, (model - stepped) / self._lr)
