"""One collector for every channel: whose reply counts, and who gave none.

Training, the roll call, votes and redundancy read their replies through ``collect``: at most one
reply a node, to a message of this exchange, from the node that was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flwr.app import Message

from fedrobust.flower.screening import Rejected

SILENT = "no reply before the deadline"
ABSENT = ("no reply", "error reply")  # honest clients may be silent or fail: no evidence
SUPERLINK = 1  # the node id in whose name the SuperLink itself answers
GENERATED = (3, 4, 5)  # Flower's codes for: no such message, no reply, no such node

T = TypeVar("T")


@dataclass
class Collected(Generic[T]):
    """What came back from one exchange.

    Attributes
    ----------
    accepted
        Node -> what its reply was read as, in the order of the node ids.
    refused
        Node -> why there is nothing of it.
    silent
        The refused nodes that sent nothing: the SuperLink's word that there is no reply counts as
        silence, whatever its error says.
    """

    accepted: dict[int, T] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)

    def rejected(self, clients: Mapping[int, int]) -> list[dict[str, Any]]:
        """Return who lost the vote, by client, as a row lists it."""
        entries = [
            {"node": node, "client": clients[node], "reason": reason}
            for node, reason in self.refused.items()
        ]
        return sorted(entries, key=lambda entry: entry["client"])

    def reasons(self, clients: Mapping[int, int]) -> dict[int, str]:
        """Return client -> why it lost the vote."""
        return {clients[node]: reason for node, reason in self.refused.items()}


def collect(
    sent: Sequence[Message], replies: Iterable[Message], read: Callable[[Message], T]
) -> Collected[T]:
    """Read at most one reply of each node that was asked.

    Parameters
    ----------
    sent
        What was asked; a reply to anything else is no reply.
    replies
        What came back, error replies included, in any order.
    read
        Turns a reply into what the caller needs, or raises ``Rejected``.

    Notes
    -----
    A reply in another node's name is passed over: the node itself may still answer. That holds for
    errors too, but for those that the SuperLink makes, in its own name.
    """
    node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    found: Collected[T] = Collected()
    waiting = dict.fromkeys(node_of.values())
    for reply in replies:
        node = node_of.get(reply.metadata.reply_to_message_id)
        if node is None or node not in waiting or not _is_from(reply, node):
            continue
        # Before it is read: a node that sends nonsense first has no second try.
        del waiting[node]
        if generated(reply, node):
            found.refused[node] = f"{SILENT} ({Rejected(reply.error.reason)})"
            found.silent.add(node)
            continue
        try:
            found.accepted[node] = read(reply)
        except Rejected as reason:
            found.refused[node] = str(reason)
    found.refused |= dict.fromkeys(waiting, SILENT)
    found.silent |= set(waiting)
    found.accepted = dict(sorted(found.accepted.items()))
    return found


def generated(reply: Message, node: int) -> bool:
    """Whether a reply is the SuperLink's: it says that the node gave none."""
    if not reply.has_error():
        return False
    return reply.error.code in GENERATED or reply.metadata.src_node_id == SUPERLINK != node


def _is_from(reply: Message, node: int) -> bool:
    source = reply.metadata.src_node_id
    return source == node or (reply.has_error() and source == SUPERLINK)
