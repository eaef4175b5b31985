"""The side channel of an ensemble's liars, for simulation: all answers and the true classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust.flower.in_process import stamp
from fedrobust.flower.serialization import array_of, read_setting, read_tensor
from fedrobust.flower.wrapping import WrappedGrid

VIEW = "fedrobust.answers"
COLLUDERS = "fedrobust.colluders"
PREDICT = "query.predict"
VOTING = ("labels", "probabilities", "logits")


class AnswerGrid(WrappedGrid):
    """Let the honest members answer a query first, and the colluders know what they said.

    Parameters
    ----------
    inner
        Any grid.
    clients
        Node id -> member.
    members
        The Byzantine ones.
    truth
        Name of a query -> the true classes of its images, (B,), or of these and more behind them.

    Notes
    -----
    One of the colluders computes the answer, which goes out under each one's own node id. Other
    messages pass untouched. A harness: on real machines colluders would need a channel of their
    own.
    """

    def __init__(
        self,
        inner: Grid,
        *,
        clients: Mapping[int, int],
        members: Collection[int],
        truth: Callable[[str], Tensor],
    ) -> None:
        super().__init__(inner)
        self._clients, self._members, self._truth = clients, frozenset(members), truth
        self._ids = count(1)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Ask the honest, then the colluders with what these answered."""
        listed = list(messages)
        colluders = [message for message in listed if self._lies(message)]
        honest = [message for message in listed if not self._lies(message)]
        replies = list(self._inner.send_and_receive(honest, timeout=timeout)) if honest else []
        if not colluders:
            return replies
        known = self._known(colluders[0], replies)
        ranked = sorted(colluders, key=lambda message: self._clients[message.metadata.dst_node_id])
        content = RecordDict({**ranked[0].content, **known})
        content[COLLUDERS] = ConfigRecord({"count": len(colluders)})
        m = ranked[0].metadata
        asked = Message(content, m.dst_node_id, m.message_type, ttl=m.ttl, group_id=m.group_id)
        told = next(iter(self._inner.send_and_receive([asked], timeout=timeout)), None)
        for message in ranked:
            # Another went out in their place: without an id nobody could answer, or be missed.
            stamp(message, f"liar-{next(self._ids)}")
        if told is None:
            return replies
        given = told.error if told.has_error() else told.content
        return replies + [Message(given, reply_to=message) for message in ranked]

    def _lies(self, message: Message) -> bool:
        what = read_setting(message.content, "query", "what")
        asked = message.metadata.message_type == PREDICT and what in VOTING
        return asked and self._clients.get(message.metadata.dst_node_id, -1) in self._members

    def _known(self, query: Message, replies: list[Message]) -> dict[str, ArrayRecord]:
        """Return the honest answers (h, B, ...) with the true classes; nothing where none came."""
        ranked = sorted(replies, key=lambda r: self._clients.get(r.metadata.src_node_id, -1))
        rows = [row for reply in ranked if (row := _answer(reply)) is not None]
        alike = [row for row in rows if row.shape == rows[0].shape]
        if not alike:
            return {}
        truth = self._truth(str(read_setting(query.content, "query", "name")))
        labels = truth[: len(alike[0])].float().cpu()  # arrays travel as float32: exact below 2^24
        return {VIEW: array_of(answers=torch.stack(alike), labels=labels)}


def _answer(reply: Message) -> Tensor | None:
    """Return a reply's answer, or None: what colluders cannot read they do without."""
    try:
        return read_tensor(reply.content, "arrays", "answer") if reply.has_content() else None
    except (KeyError, ValueError):
        return None
