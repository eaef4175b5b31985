"""What came back in one round: at most one screened reply a node, and who lost the vote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.flower import Rejected, screen
from fedrobust.flower.screening import Reply

SILENT = "no reply before the deadline"


@dataclass
class Round:
    """What came back in one round."""

    accepted: dict[int, Reply] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def matrix(self, buffer: Tensor | None = None) -> Tensor:
        """Return the accepted updates (n, d), by client; inside ``buffer`` where it fits."""
        rows = self.rows
        shape = (len(rows), rows[0].numel()) if rows else (0, 0)
        fits = buffer is not None and tuple(buffer.shape) == shape
        return torch.stack(rows, out=buffer) if fits else torch.stack(rows)

    @property
    def rows(self) -> list[Tensor]:
        """The accepted updates, by client."""
        return [self.accepted[client].update for client in self.clients]

    @property
    def clients(self) -> list[int]:
        """The clients whose replies were accepted, in order."""
        return sorted(self.accepted)


def listen(
    replies: Iterable[Message],
    sent: Sequence[Message],
    *,
    clients: Mapping[int, int],
    d: int,
    most_examples: int,
    largest: float,
    **more: Any,
) -> Round:
    """Accept at most one reply a node; name who lost the vote and why.

    Parameters
    ----------
    sent
        What was asked in this round; a reply to anything else is no reply.
    clients
        Node id -> client.
    d, most_examples, largest, **more
        See ``fedrobust.flower.screen``.
    """
    node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    missing, heard = set(node_of.values()), Round()

    def refuse(node: int, reason: str) -> None:
        heard.rejected.append({"node": node, "client": clients[node], "reason": reason})

    for reply in replies:
        node = node_of.get(reply.metadata.reply_to_message_id)
        if node is None or node not in missing:
            continue
        if not reply.has_error() and reply.metadata.src_node_id != node:
            continue  # in another's name: the node itself may still answer
        missing.discard(node)
        try:
            checked = screen(reply, d=d, most_examples=most_examples, largest=largest, **more)
            heard.accepted[clients[node]] = checked
        except Rejected as reason:
            refuse(node, str(reason))
    for node in missing:
        refuse(node, SILENT)
    heard.rejected.sort(key=lambda entry: entry["client"])
    return heard
