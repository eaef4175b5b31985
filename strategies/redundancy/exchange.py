"""Ask file workers in the middle of a round, keep the answers' bytes and who broke its word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedrobust.flower.commit_reveal import SCHEME
from fedrobust.flower.replies import SILENT, collect
from fedrobust.flower.screening import Rejected

T = TypeVar("T")


@dataclass
class RoundLog:
    """What one round cost, and what it proved.

    Attributes
    ----------
    bytes_up, bytes_down
        Payload bytes by stage, without headers.
    caught
        Worker -> how it contradicted its own commitment: proof, whatever the others say.
    refused
        Replies that could not be used: no proof of anything.
    """

    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    caught: dict[int, str] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def up(self, stage: str, count: int) -> None:
        """Count uploaded bytes."""
        self.bytes_up[stage] = self.bytes_up.get(stage, 0) + count

    def refuse(self, client: int, reason: str) -> None:
        """Note a reply that could not be used; once a worker and reason."""
        entry = {"client": client, "reason": reason}
        if entry not in self.refused:
            self.refused.append(entry)

    def catch(self, client: int, reason: str) -> None:
        """Note a worker that contradicted itself."""
        self.caught.setdefault(client, reason)

    @property
    def silent(self) -> set[int]:
        """The workers of which some answer could not be used."""
        return {entry["client"] for entry in self.refused}

    def usable(self, client: int) -> bool:
        """Whether a worker has kept its word and answered so far."""
        return client not in self.caught and client not in self.silent


@dataclass(frozen=True)
class Exchange:
    """A grid, the nodes behind the workers, and the round that is going on."""

    grid: Grid
    clients: Mapping[int, int]
    round: int
    deadline: float

    def messages(self, orders: Mapping[int, ConfigRecord], **records: Any) -> list[Message]:
        """Build one message per worker; workers with one order share one content."""
        contents: dict[int, RecordDict] = {}
        setting = ConfigRecord({"round": self.round})
        for order in orders.values():
            content = RecordDict({**records, "config": setting, SCHEME: order})
            # By identity: ``orders`` keeps them alive, so that no id can stand for two.
            contents.setdefault(id(order), content)
        label, ttl = str(self.round), self.deadline
        return [
            Message(contents[id(orders[client])], node, "train", group_id=label, ttl=ttl)
            for node, client in self.clients.items()
            if client in orders
        ]

    def ask(self, orders: Mapping[int, ConfigRecord], **records: Any) -> dict[int, Message]:
        """Send orders; return the first reply of each worker that answered."""
        if not orders:
            return {}
        sent = self.messages(orders, **records)
        return self.heard(sent, self.grid.send_and_receive(sent, timeout=self.deadline))

    def heard(self, sent: list[Message], replies: Iterable[Message]) -> dict[int, Message]:
        """Match replies with what was sent: one a node, in the workers' order."""
        found = collect(sent, replies, lambda reply: reply).accepted
        return dict(sorted((self.clients[node], reply) for node, reply in found.items()))


def read_all(
    replies: Mapping[int, Message],
    asked: Iterable[int],
    read: Callable[[Message, int], T],
    ledger: RoundLog,
) -> dict[int, T]:
    """Read each worker's reply with ``read(message, client)``; note who gave none, or a bad one."""
    result = {}
    for client in asked:
        if client not in replies:
            ledger.refuse(client, SILENT)
            continue
        try:
            result[client] = read(replies[client], client)
        except Rejected as reason:
            ledger.refuse(client, str(reason))
    return result
