"""What came back: at most one reply a node, read by one function, and who lost the vote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flwr.app import Message

from fedrobust.flower import Rejected

Read = TypeVar("Read")
SILENT = "no reply before the deadline"


@dataclass(frozen=True)
class Collected(Generic[Read]):
    """The replies of one question.

    Attributes
    ----------
    accepted
        Node -> what was read from its reply, in the order of the node ids.
    refused
        Node -> why it has no vote; silence is a reason.
    """

    accepted: dict[int, Read] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def rejected(self, clients: dict[int, int]) -> list[dict[str, Any]]:
        """Return who lost the vote, by client, as a row lists it."""
        entries = [
            {"node": node, "client": clients[node], "reason": reason}
            for node, reason in self.refused.items()
        ]
        return sorted(entries, key=lambda entry: entry["client"])


def collect(
    sent: Sequence[Message],
    replies: Iterable[Message],
    read: Callable[[Message], Read],
    *,
    silent: str = SILENT,
) -> Collected[Read]:
    """Read at most one reply a node; whatever a node sends costs at most its own vote.

    Parameters
    ----------
    sent
        What was asked; a reply to anything else is no reply, and neither is one that was sent in
        another node's name (the node itself may still answer).
    read
        Message -> what it holds; raises ``Rejected`` with the reason.
    silent
        The reason of nodes that did not answer.
    """
    node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    accepted: dict[int, Read] = {}
    refused: dict[int, str] = {}
    for reply in replies:
        node = node_of.get(reply.metadata.reply_to_message_id)
        if node is None or node in accepted or node in refused:
            continue
        # An engine itself answers with an error for a node that is gone, under no node's name.
        if not reply.has_error() and reply.metadata.src_node_id != node:
            continue
        try:
            accepted[node] = read(reply)
        except Rejected as reason:
            refused[node] = str(reason)
    missing = [node for node in node_of.values() if node not in accepted and node not in refused]
    return Collected(
        {node: accepted[node] for node in sorted(accepted)},
        refused | dict.fromkeys(missing, silent),
    )
