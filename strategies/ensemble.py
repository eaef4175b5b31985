"""Learning without averaging: every node trains its own model, and they vote at inference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrobust.config import Experiment
from fedrobust.distributed import nodes_of
from fedrobust.flower.answers import Progress, screen_progress
from fedrobust.flower.replies import SILENT, collect
from strategies.recorded import RecordedStrategy, Row


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
    on_row
        Called with each round's row when it is complete.

    Notes
    -----
    No message of training holds an array, in either direction: the models stay where they are.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        clients: Mapping[int, int],
        most_examples: int,
        on_row: Callable[[Row], None] = lambda row: None,
    ) -> None:
        super().__init__(on_row)
        self._experiment = experiment
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._nodes = nodes_of(experiment)
        self._sent: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send every node its own row of the node table, and nothing else."""
        self._started = time.perf_counter()
        ttl = self._experiment.server.deadline
        self._sent = [
            Message(self._task(client, server_round), node, "train", ttl=ttl,
                    group_id=str(server_round))
            for node, client in self._clients.items()
        ]  # fmt: skip
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note each member's progress; there is nothing to aggregate."""
        heard, rejected = self._screen(replies)
        losses = [progress.loss for progress in heard.values()]
        self._row = {
            "round": server_round,
            "replies": len(heard),
            "rejected": rejected,
            "train_loss": round(sum(losses) / len(losses), 6) if losses else None,
            "progress": {str(c): asdict(heard[c]) for c in sorted(heard)},
        }
        return None, None

    def close_round(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Complete the round's row and hand it out; who failed to vote is named with the rest."""
        failed = [*self._row.get("rejected", []), *metrics.get("rejected", [])]
        named = {entry["client"]: entry for entry in reversed(failed)}
        super().close_round(
            server_round, {**metrics, "rejected": [named[c] for c in sorted(named)]}
        )
        self._started = time.perf_counter()

    def _task(self, client: int, server_round: int) -> RecordDict:
        row = json.dumps(asdict(self._nodes[client]))
        words = ConfigRecord({"row": row, "round": server_round})
        return RecordDict({"node": words})

    def _screen(
        self, replies: Iterable[Message]
    ) -> tuple[dict[int, Progress], list[dict[str, Any]]]:
        most = self._most_examples
        found = collect(
            self._sent, replies, lambda reply: screen_progress(reply, most_examples=most)
        )
        reasons = dict.fromkeys(self._clients, SILENT) | found.refused
        rejected = [
            {"node": node, "client": self._clients[node], "reason": reasons[node]}
            for node in self._clients
            if node not in found.accepted
        ]
        heard = {self._clients[node]: told for node, told in found.accepted.items()}
        return heard, sorted(rejected, key=lambda entry: entry["client"])
