"""What came back in one round: at most one screened reply a node, and who lost the vote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.flower import screen
from fedrobust.flower.replies import SILENT, collect
from fedrobust.flower.screening import Reply

__all__ = ["SILENT", "Round", "listen"]


@dataclass
class Round:
    """What came back in one round."""

    accepted: dict[int, Reply] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    silent: set[int] = field(default_factory=set)

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
    settings = {"d": d, "most_examples": most_examples, "largest": largest, **more}
    found = collect(sent, replies, lambda reply: screen(reply, **settings))
    heard = Round({clients[node]: reply for node, reply in found.accepted.items()})
    heard.silent = {clients[node] for node in found.silent}
    for node, reason in found.refused.items():
        heard.rejected.append({"node": node, "client": clients[node], "reason": reason})
    heard.rejected.sort(key=lambda entry: entry["client"])
    return heard
