"""What the gate remembers of each node: the messages it was told of, and the replies it pushes.

Everything here is bounded by what the server sent: a node cannot make it grow.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedrobust.flower import _compat as flower

MIB = 2**20
STORED = 4  # replies' worth of bytes that a node may have in the store at a time
LINGER = 3600.0  # seconds after a message's end for which what was pushed counts as stored

Outcome = Callable[[bool, int, bytes], None]  # success, size and body of the response
Proto = TypeVar("Proto")


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.kind = status, reason, kind or str(status)


class Softly(Exception):
    """A request that Flower is not asked about: the answer is that there is no such thing."""

    def __init__(self, reason: str, content: bytes) -> None:
        super().__init__(reason)
        self.reason, self.content = reason, content


@dataclass(frozen=True)
class Limits:
    """What one node may push.

    Attributes
    ----------
    objects, depth
        Of the object tree of one reply. Flower stores a tree in several statements an object,
        under one lock. A reply of one array has five objects, and one more per 5 MB.
    reply_bytes
        Of one reply's objects; twice the bytes of the message that it answers if those are more.
        ``STORED`` times as many may wait in the store, unread by the server.
    """

    objects: int = 1024
    depth: int = 8
    reply_bytes: int = 64 * MIB


@dataclass
class Told:
    """A message that a node was given: its objects, and the bytes that it fetched of them."""

    objects: frozenset[str]
    until: float
    fetched: dict[str, int] = field(default_factory=dict)


@dataclass
class Pushed:
    """A reply that a node announced."""

    reply: str
    tree: bytes
    objects: frozenset[str]
    until: float
    room: int
    sizes: dict[str, int] = field(default_factory=dict)
    read: bool = False

    @property
    def stored(self) -> int:
        """Bytes that it has in the store."""
        return sum(self.sizes.values())


@dataclass
class Node:
    """One node's messages and replies, by the message's id."""

    told: dict[str, Told] = field(default_factory=dict)
    pushed: dict[str, Pushed] = field(default_factory=dict)

    def forget(self, now: float) -> None:
        """Drop what has expired: Flower refuses replies to it by itself."""
        for key in [k for k, message in self.told.items() if message.until < now]:
            del self.told[key]
        for key in [k for k, reply in self.pushed.items() if reply.until < now]:
            del self.pushed[key]


class Accounts:
    """Judge nodes' requests by what they were told and have pushed.

    Node ids are those that the requests claim. Flower, behind the gate, holds them against the key
    that signed the request; what a request changes here is undone unless Flower accepted it.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits, clock
        self._nodes: dict[int, Node] = {}
        self._rules: dict[str, Callable[[bytes], Outcome]] = {
            "pull-messages": self._pull_messages,
            "pull-object": self._pull_object,
            "confirm-message-received": self._confirm,
            "push-messages": self._push_messages,
            "push-object": self._push_object,
        }

    def judge(self, route: str, body: bytes) -> Outcome:
        """Return what to do once Flower has answered.

        Raises
        ------
        Refused
            If the request is not this node's to make, or beyond its bounds.
        Softly
            If it is about something that the gate does not know.
        """
        rule = self._rules.get(route)
        return ignore if rule is None else rule(body)

    def confirmed(self, body: bytes) -> None:
        """Note that the server has read a reply: Flower deletes its objects."""
        reply = parsed(flower.ConfirmMessageReceivedRequest, body).message_object_id
        for node in self._nodes.values():
            for pushed in node.pushed.values():
                if pushed.reply == reply:
                    pushed.sizes.clear()
                    pushed.read = True
                    return

    def _node(self, node_id: int) -> Node:
        """Return what is known of a node; a stranger's guess leaves nothing behind."""
        node = self._nodes.get(node_id, Node())
        node.forget(self._clock())
        return node

    def _pull_messages(self, body: bytes) -> Outcome:
        node_id = parsed(flower.PullMessagesRequest, body).node.node_id

        def outcome(done: bool, size: int, content: bytes) -> None:
            if not done:
                return
            response = parsed(flower.PullMessagesResponse, content)
            for message, tree in zip(
                response.messages_list, response.message_object_trees, strict=True
            ):
                node = self._nodes.setdefault(node_id, Node())
                data = message.metadata
                told = Told(frozenset(names(tree)), data.created_at + data.ttl)
                node.told[data.message_id] = told

        return outcome

    def _pull_object(self, body: bytes) -> Outcome:
        request = parsed(flower.PullObjectRequest, body)
        wanted = request.object_id
        messages = [
            m for m in self._node(request.node.node_id).told.values() if wanted in m.objects
        ]
        if not messages:
            unknown = flower.PullObjectResponse(object_found=False, object_available=False)
            raise Softly("an object of which the node was not told", unknown.SerializeToString())

        def outcome(done: bool, size: int, content: bytes) -> None:
            if done:
                for message in messages:
                    message.fetched[wanted] = size

        return outcome

    def _confirm(self, body: bytes) -> Outcome:
        request = parsed(flower.ConfirmMessageReceivedRequest, body)
        if request.message_object_id not in self._node(request.node.node_id).told:
            nothing = flower.ConfirmMessageReceivedResponse().SerializeToString()
            raise Softly("a message that the node was not given", nothing)
        return ignore

    def _push_messages(self, body: bytes) -> Outcome:
        request = parsed(flower.PushMessagesRequest, body)
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Refused(400, "a push needs exactly one message and one tree")
        data, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        asked, node_id = data.reply_to_message_id, request.node.node_id
        if data.src_node_id != node_id:
            raise Refused(403, f"node {node_id} speaks in the name of node {data.src_node_id}")
        if not asked:
            raise Refused(403, f"node {node_id} sends a message that is no reply")
        found = measured(tree, self._limits)
        if tree.object_id != data.message_id:
            raise Refused(400, "the tree is another message's")
        node = self._node(node_id)
        if asked not in node.told:
            nothing = flower.PushMessagesResponse(results={data.message_id: 0})
            raise Softly("a reply to a message that the node was not given",
                         nothing.SerializeToString())  # fmt: skip
        # Protobuf promises the same bytes for the same message only if it is asked to.
        digest = hashlib.sha256(tree.SerializeToString(deterministic=True)).digest()
        before = node.pushed.get(asked)
        if before is not None:
            if (before.reply, before.tree) != (data.message_id, digest):
                raise Refused(409, f"node {node_id} has answered this message with another reply")
            return ignore  # the same once more: a node that lost the answer
        told = node.told[asked]
        room = max(self._limits.reply_bytes, 2 * sum(told.fetched.values()))
        until = told.until + LINGER
        node.pushed[asked] = Pushed(data.message_id, digest, frozenset(found), until, room)

        def outcome(done: bool, size: int, content: bytes) -> None:
            if not done:
                node.pushed.pop(asked, None)

        return outcome

    def _push_object(self, body: bytes) -> Outcome:
        request = parsed(flower.PushObjectRequest, body)
        node, name, size = self._node(request.node.node_id), request.object_id, len(body)
        replies = [reply for reply in node.pushed.values() if name in reply.objects]
        if not replies:
            nothing = flower.PushObjectResponse(stored=False)
            raise Softly("an object that the node did not announce", nothing.SerializeToString())
        reply = replies[-1]
        if reply.read or name in reply.sizes:
            return ignore  # once more: Flower keeps the first
        stored = sum(each.stored for each in node.pushed.values())
        most = STORED * max(reply.room, self._limits.reply_bytes)
        if reply.stored + size > reply.room or stored + size > most:
            raise Refused(413, f"node {request.node.node_id} is beyond {reply.room} bytes a reply"
                               f" or {most} in the store")  # fmt: skip
        reply.sizes[name] = size

        def outcome(done: bool, size: int, content: bytes) -> None:
            if not done:
                reply.sizes.pop(name, None)

        return outcome


def ignore(done: bool, size: int, content: bytes) -> None:
    """Do nothing."""


def parsed(kind: type[Proto], body: bytes) -> Any:
    """Read a protobuf message.

    Raises
    ------
    Refused
        If the bytes are none of this kind.
    """
    message: Any = kind()
    try:
        message.ParseFromString(body)
    except flower.DecodeError as error:
        raise Refused(400, f"no {kind.__name__}") from error
    return message


def names(tree: Any) -> list[str]:
    """List the objects of a tree that the server made."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        found.append(node.object_id)
        waiting += node.children
    return found


def measured(tree: Any, limits: Limits) -> list[str]:
    """List the objects of a tree, without recursion and without trusting its size.

    Raises
    ------
    Refused
        If it is too wide or too deep.
    """
    found: list[str] = []
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        found.append(node.object_id)
        if depth > limits.depth:
            raise Refused(413, f"a tree deeper than {limits.depth}")
        if len(found) + len(waiting) + len(node.children) > limits.objects:
            raise Refused(413, f"a tree of more than {limits.objects} objects")
        waiting += [(child, depth + 1) for child in node.children]
    return found
