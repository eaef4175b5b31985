"""Replies from real nodes, each within a budget of bytes, and none able to end the run.

Flower's own grid pulls whatever a node sent: gigabytes are allocated before anything is checked,
and a reply that cannot be put together raises in the server. Here every reply is pulled by itself.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, Error, Message
from flwr.serverapp import Grid

from fedrobust.flower._compat import (
    CHUNK,
    HEAD_BODY_DIVIDER,
    ConfirmMessageReceivedRequest,
    HttpGrid,
    ObjectTree,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    get_object_head_values_from_object_content,
    inflate_object_from_contents,
    make_pull_object_fn_protobuf,
    runtime_client,
    set_message_id,
)
from fedrobust.flower.salt import salted, take_ids
from fedrobust.flower.wrapping import WrappedGrid

UNREADABLE = 11  # a code of our own, beyond Flower's
SLACK = 2**20  # bytes of a reply beside its arrays
MOST_SMALL = 64  # objects of one client's reply beside chunks: ours has five
LARGEST_SMALL = 2**16  # bytes of such an object, per client: names, shapes, numbers
ITEM = 4  # bytes of a float32
DEEPEST = 8  # message, records, record, array, chunk


class TooLarge(ValueError):
    """A reply beyond its budget."""


@dataclass(frozen=True)
class _Arriving:
    """A reply that a node has announced, and what has been fetched of it."""

    message_id: str
    tree: ObjectTree
    contents: dict[str, bytes] = field(default_factory=dict)


class GuardedGrid(WrappedGrid):
    """Pull the replies of real nodes one by one, each within a budget.

    Parameters
    ----------
    inner
        Flower's grid of the deployment engine; over any other, messages pass as they are.
    clients
        How many clients answer in one reply: more than one for a cohort host.
    poll
        Seconds between two looks for new replies.

    Notes
    -----
    A reply may have as many bytes for each client as the arrays that it answers, and ``SLACK``.
    Nothing beyond that is read, and nothing is unfolded before its size is known. A reply that is
    too large, too deep, or no message at all becomes an error reply of its node: it costs the vote.
    Replies are pulled as they come, and a node may take until the deadline to send one: what is
    there is kept, and nobody else waits for the rest.
    """

    def __init__(self, inner: Grid, *, clients: int = 1, poll: float = 1.0) -> None:
        super().__init__(inner)
        self._clients = clients
        self._poll = poll

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, and pull replies until all are there or the time is up."""
        if not isinstance(self._inner, HttpGrid):
            return list(self._inner.send_and_receive(messages, timeout=timeout))
        end = time.monotonic() + timeout if timeout is not None else None
        listed = list(messages)
        sent = salted(listed)
        ids = list(self._inner.push_messages(sent))
        take_ids(listed, sent)
        waiting = {i: m for i, m in zip(ids, listed, strict=True) if i}
        arriving: dict[str, _Arriving] = {}
        replies: list[Message] = []
        while waiting:
            arriving |= self._announced([i for i in waiting if i not in arriving])
            for asked in list(arriving):
                reply = self._read(arriving[asked], waiting[asked])
                if reply is not None:
                    del arriving[asked], waiting[asked]
                    replies.append(reply)
            if not waiting or (end is not None and time.monotonic() >= end):
                break
            time.sleep(self._poll)
        return replies

    def _announced(self, asked: list[str]) -> dict[str, _Arriving]:
        """Return the replies that nodes have begun to send, by what they answer."""
        if not asked:
            return {}
        client = runtime_client(cast(HttpGrid, self._inner))
        found = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        return {
            proto.metadata.reply_to_message_id: _Arriving(proto.metadata.message_id, tree)
            for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True)
            if proto.metadata.reply_to_message_id in asked
        }

    def _read(self, arriving: _Arriving, asked: Message) -> Message | None:
        """Return a reply, an error reply that says why it cannot be one, or None for not yet."""
        run, node = self._inner.run.run_id, cast(HttpGrid, self._inner).node
        client = runtime_client(cast(HttpGrid, self._inner))
        fetch = make_pull_object_fn_protobuf(client.PullObject, node, run)
        most_bytes = self._clients * (_array_bytes(asked) + SLACK)
        try:
            with limited(client, most_bytes):
                reply = read_reply(
                    arriving.tree,
                    fetch,
                    most_bytes=most_bytes,
                    clients=self._clients,
                    contents=arriving.contents,
                )
            if reply.metadata.reply_to_message_id != asked.metadata.message_id:
                raise ValueError("the reply is to another message than its envelope says")
        except ObjectUnavailableError:
            return None
        except Exception as error:  # whatever a hostile reply breaks, it costs only its own vote
            reason = f"unreadable reply ({type(error).__name__}: {str(error)[:160]})"
            reply = Message(Error(code=UNREADABLE, reason=reason), reply_to=asked)
        confirm = ConfirmMessageReceivedRequest(
            node=node, run_id=run, message_object_id=arriving.message_id
        )
        client.ConfirmMessageReceived(confirm)
        return reply


def read_reply(
    tree: ObjectTree,
    fetch: Callable[[str], bytes],
    *,
    most_bytes: int,
    clients: int = 1,
    contents: dict[str, bytes] | None = None,
) -> Message:
    """Fetch the objects of one reply within a budget and put the message together.

    Parameters
    ----------
    tree
        What the sender says the reply consists of.
    fetch
        Object id -> bytes.
    most_bytes
        Of all objects together, and of what they unfold to.
    clients
        How many clients answer in it.
    contents
        What has been fetched of this reply before; what is fetched now is added.

    Raises
    ------
    ObjectUnavailableError
        If an object is announced and not there yet: call again later, with the same ``contents``.
    TooLarge
        Before anything is fetched, if the tree is too wide or too deep; before the next object is,
        once the budget is spent; before anything is unfolded, if it would unfold to more.
    Exception
        Whatever Flower's own reader raises for bytes that are no message.
    """
    most_objects = MOST_SMALL * clients + most_bytes // CHUNK
    contents = {} if contents is None else contents
    left = most_bytes - sum(map(len, contents.values()))
    for object_id in _ids(tree, most_objects):
        if object_id in contents:
            continue
        content = fetch(object_id)
        left -= len(content)
        if left < 0:
            raise TooLarge(f"more than the {most_bytes} bytes that a reply may have")
        contents[object_id] = content
    _weigh(tree.object_id, contents, clients * LARGEST_SMALL, most_bytes)
    message = inflate_object_from_contents(tree.object_id, contents)
    if not isinstance(message, Message):
        raise ValueError(f"a {type(message).__name__} instead of a message")
    set_message_id(message, tree.object_id)
    return message


@contextmanager
def limited(client: Any, most_bytes: int) -> Iterator[None]:
    """Refuse, inside the block, responses whose head announces more bytes than a reply may have."""
    hooks = client._client.event_hooks

    def refuse(response: Any) -> None:
        announced = int(response.headers.get("content-length", 0))
        if announced > most_bytes + CHUNK:
            response.close()
            raise TooLarge(f"an object of {announced} bytes, a reply may have {most_bytes}")

    client._client.event_hooks = {**hooks, "response": [*hooks["response"], refuse]}
    try:
        yield
    finally:
        client._client.event_hooks = hooks


def _ids(tree: ObjectTree, most: int) -> list[str]:
    """List the distinct objects of a tree, without recursion and without trusting its size."""
    ids: dict[str, None] = {}
    waiting, seen = [(tree, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > most or depth > DEEPEST:
            raise TooLarge(f"more than {most} objects, or deeper than {DEEPEST}")
        ids[node.object_id] = None
        waiting += [(child, depth + 1) for child in node.children]
    return list(ids)


def _weigh(root: str, contents: dict[str, bytes], largest_small: int, most_bytes: int) -> None:
    """Refuse objects that refer to one another so often that they unfold beyond the budget.

    An array names its chunks by their places, as often as it likes: one chunk of 5 MB and a list of
    ten thousand zeros are 50 GB. Every reference counts as much as what it refers to.
    """
    known: dict[str, int] = {}

    def weight(object_id: str, depth: int) -> int:
        if object_id in known:
            return known[object_id]
        if depth > DEEPEST:
            raise TooLarge(f"deeper than {DEEPEST}")
        content = contents[object_id]
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != "ArrayChunk" and len(content) > largest_small:
            raise TooLarge(f"{kind:.20} of {len(content)} bytes, beyond {largest_small}")
        total = len(content) + sum(weight(i, depth + 1) for i in _named(kind, children, content))
        known[object_id] = total
        if total > most_bytes:
            raise TooLarge(f"unfolds to more than the {most_bytes} bytes that a reply may have")
        return total

    weight(root, 1)


def _named(kind: str, children: list[str], content: bytes) -> list[str]:
    """List what an object unfolds, as often as it does."""
    if kind not in ("Array", "ArrayRecord", "RecordDict"):
        return children
    body = json.loads(content[content.find(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :])
    if kind == "Array":
        return [children[place] for place in body["arraychunk_ids"]]
    return list(body.values())


def _array_bytes(message: Message) -> int:
    """Count the bytes of a message's arrays, without making them."""
    return sum(
        math.prod(array.shape) * ITEM
        for record in message.content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )
