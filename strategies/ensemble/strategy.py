"""Learning without averaging: every node trains its own model, and they vote at inference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrobust.ensemble import nodes_of
from fedrobust.experiment.schema import Experiment
from fedrobust.flower.ensemble_replies import screen_progress
from fedrobust.flower.replies import collect
from strategies.base import RecordedStrategy


class EnsembleStrategy(RecordedStrategy):
    """Tell each node how to train, count how far they are, and average nothing.

    Parameters
    ----------
    experiment
        Its plan gives each node a row of the node table.
    clients
        Node id -> member, from the roll call.
    most_examples
        No member may claim more.

    Notes
    -----
    No message of training holds an array, in either direction: the models stay where they are, and
    so does everything that a checkpoint must hold.
    """

    first_row: ClassVar[int] = 1  # there is no initial model to evaluate

    def __init__(
        self, experiment: Experiment, *, clients: Mapping[int, int], most_examples: int
    ) -> None:
        super().__init__()
        self._experiment = experiment
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._nodes = nodes_of(experiment)
        self._sent: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send every node its own row of the node table, and nothing else."""
        group, ttl = str(server_round), self._experiment.server.deadline
        self._sent = [
            Message(self._task(client, server_round), node, "train", ttl=ttl, group_id=group)
            for node, client in self._clients.items()
        ]
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note each member's progress; there is nothing to aggregate."""
        read = partial(screen_progress, most_examples=self._most_examples)
        heard = collect(self._sent, replies, read)
        told = {self._clients[node]: progress for node, progress in heard.accepted.items()}
        # Claims, in the row alone: nothing is weighted or stopped by them.
        losses = [progress.loss for progress in heard.accepted.values()]
        self._row = {
            "round": server_round,
            "replies": len(told),
            "rejected": heard.rejected(self._clients),
            "train_loss": round(sum(losses) / len(losses), 6) if losses else None,
            "progress": {str(c): asdict(told[c]) for c in sorted(told)},
        }
        return None, None

    def snapshot(self) -> dict[str, Any]:
        """Return nothing: the members' models are the nodes' state."""
        return {}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Do nothing."""

    def _task(self, client: int, server_round: int) -> RecordDict:
        row = json.dumps(asdict(self._nodes[client]))
        return RecordDict({"node": ConfigRecord({"row": row, "round": server_round})})
