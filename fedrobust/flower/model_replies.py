"""What a model reply of anybody's app holds: its arrays, read without trusting their claims.

An app may send its model in one ArrayRecord or in several, under any keys, and its clients may
answer with whole models or with differences. What is common to all of them: the floating arrays
are the coordinates of an update, and everything else is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, Message, RecordDict

from fedrobust.flower.layers import STATISTICS
from fedrobust.flower.replies import SUPERLINK
from fedrobust.flower.serialization import npy_values

Key = tuple[str, str]  # record, array
Values = dict[Key, np.ndarray]
FLOAT, INTEGER = "float", "integer"
SECURE_AGGREGATION = "secaggplus_configs"  # the record that Flower's SecAgg+ workflow sends


class Refused(ValueError):
    """Why a reply lost its vote."""


@dataclass(frozen=True)
class ModelReply:
    """A reply whose arrays could be read."""

    node: int
    values: Values
    content: RecordDict


def array_values(array: Array) -> np.ndarray:
    """Return an array's numbers as ``npy_values`` does; ``Refused`` where they cannot be read."""
    try:
        return npy_values(array)
    except ValueError as error:
        raise Refused(str(error)) from error


def read_arrays(content: RecordDict) -> Values:
    """Read every array of every ArrayRecord, in their order.

    Raises
    ------
    Refused
        Naming the layer, also for one that holds values that are not finite.
    """
    values: Values = {}
    for record, arrays in content.array_records.items():
        for name, array in arrays.items():
            try:
                found = array_values(array)
            except Refused as error:
                raise Refused(f"layer {name!r}: {error}") from None
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                raise Refused(f"layer {name!r} holds values that are not finite")
            values[record, name] = found
    return values


def read_reply(reply: Message, node: int) -> ModelReply:
    """Read a client's reply.

    Raises
    ------
    Refused
        For an error reply, and for arrays that cannot be read; whatever a reply holds, nothing
        else is raised.
    """
    try:
        if reply.has_error():
            raise Refused(f"error reply: {str(reply.error.reason)[:200]}")
        return ModelReply(node, read_arrays(reply.content), reply.content)
    except Refused:
        raise
    except Exception as error:  # a hostile reply may break any accessor: it loses its vote
        raise Refused(f"{type(error).__name__}: {str(error)[:160]}") from error


@dataclass(frozen=True)
class Sent:
    """What the nodes were asked, noted before the messages left: clients may change records.

    Attributes
    ----------
    messages
        Node -> its message.
    arrays
        Node -> the arrays that it was sent; one object where all nodes were sent the same.
    """

    messages: dict[int, Message]
    arrays: dict[int, Values]

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Sent:
        """Note messages, one a node."""
        listed = {message.metadata.dst_node_id: message for message in messages}
        noted: dict[int, Values] = {}  # strategies send one content object to all nodes
        arrays: dict[int, Values] = {}
        for node, message in listed.items():
            content = message.content
            if id(content) not in noted:
                noted[id(content)] = _same(readable_arrays(content), noted)
            arrays[node] = noted[id(content)]
        return cls(listed, arrays)

    def kept(self, replies: Iterable[Message]) -> tuple[dict[int, Message], dict[int, str]]:
        """Keep one reply a node, where it was asked; name the others and why."""
        # A grid that copies what it sends leaves the originals without ids: then names must do.
        node_of = {i: n for n, m in self.messages.items() if (i := m.metadata.message_id)}
        kept: dict[int, Message] = {}
        for reply in replies:
            said, to = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
            node = node_of.get(to) if node_of else said
            if node is None or node not in self.messages:
                continue
            if said != node and not (reply.has_error() and said == SUPERLINK):
                continue  # sent in another's name: the node itself may still answer
            kept.setdefault(node, reply)
        silent = {node: "no reply" for node in self.messages if node not in kept}
        return kept, silent


@dataclass(frozen=True)
class Layout:
    """What the replies of a round agree on: keys in order, and each array's kind and shape."""

    slots: dict[Key, tuple[str, tuple[int, ...]]]

    @property
    def coordinates(self) -> list[Key]:
        """The floating arrays that a rule sees: no running statistics."""
        return [key for key, (kind, _) in self.slots.items() if is_coordinate(key, kind)]

    @property
    def others(self) -> list[Key]:
        """Running statistics, counters and masks: each entry becomes the median."""
        return [key for key, (kind, _) in self.slots.items() if not is_coordinate(key, kind)]


def is_coordinate(key: Key, kind: str) -> bool:
    """Whether an array is part of the update."""
    return kind == FLOAT and key[1].rpartition(".")[2] not in STATISTICS


def layout_of(values: Values, integers: Mapping[Key, np.dtype]) -> Layout:
    """Describe the arrays; ``integers`` were whole numbers before, whatever they are now."""

    def kind(key: Key, array: np.ndarray) -> str:
        return FLOAT if array.dtype.kind == "f" and key not in integers else INTEGER

    return Layout({key: (kind(key, array), array.shape) for key, array in values.items()})


def agreed(layouts: Sequence[Layout]) -> Layout | None:
    """Return the layout of more than half of the replies, in their most usual order."""
    if not layouts:
        return None
    ballots = [frozenset(layout.slots.items()) for layout in layouts]
    winner, votes = Counter(ballots).most_common(1)[0]
    # The most frequent one is not enough: f Byzantine nodes could be that, where honest ones
    # differ.
    if 2 * votes <= len(layouts):
        return None
    fitting = [layout for layout, b in zip(layouts, ballots, strict=True) if b == winner]
    order, _ = Counter(tuple(layout.slots) for layout in fitting).most_common(1)[0]
    return Layout({key: fitting[0].slots[key] for key in order})


def difference(layout: Layout, other: Layout) -> str:
    """Say how a reply's layout differs from the one agreed on."""
    odd = sorted({name for _, name in layout.slots.keys() ^ other.slots.keys()})
    if odd:
        return f"layers missing or extra: {', '.join(odd)[:80]}"
    for key, (kind, shape) in layout.slots.items():
        if other.slots[key] != (kind, shape):
            found_kind, found_shape = other.slots[key]
            return f"layer {key[1]!r} is {found_kind} {found_shape}, expected {kind} {shape}"
    return "the same layout"


def start_of(key: Key, shape: tuple[int, ...], sent: Mapping[Key, np.ndarray]) -> np.ndarray | None:
    """Return the array that a reply's array continues: of its key, or else of its name.

    None where the app sent nothing of that name and shape: the reply is then an update by itself.
    """
    named = [sent[key]] if key in sent else [a for (_, n), a in sent.items() if n == key[1]]
    return named[0] if len(named) == 1 and named[0].shape == shape else None


def readable_arrays(content: RecordDict) -> Values:
    """Read the arrays of a message; what is no array of numbers is nobody's start, and left out."""
    values: Values = {}
    for record, arrays in content.array_records.items():
        for name, array in arrays.items():
            try:
                values[record, name] = array_values(array)
            except Refused:
                continue
    return values


def _same(values: Values, noted: Mapping[int, Values]) -> Values:
    """Return the first noted arrays if these are equal to them: n copies are n times the memory."""
    first = next(iter(noted.values()), None)
    if first is None or first.keys() != values.keys():
        return values
    return first if all(np.array_equal(first[key], values[key]) for key in first) else values


def refuse_secure_aggregation(messages: Iterable[Message]) -> None:
    """Raise where updates are hidden from the server.

    Raises
    ------
    ValueError
        For messages of Flower's SecAgg or SecAgg+.
    """
    if any(SECURE_AGGREGATION in m.content.config_records for m in messages if m.has_content()):
        raise ValueError(
            "secure aggregation shows the server nothing but the sum of the updates, and a robust "
            "rule has to see each of them: use one or the other"
        )
