"""Replies from real nodes, each within a budget of bytes, and none able to end the run.

Flower's own grid pulls whatever a node sent: gigabytes are allocated before anything is checked,
and a reply that cannot be put together raises in the server. Here every reply is pulled by itself,
and a node that costs the others their time is waited for less and less.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any, TypeVar, cast

import httpx
from flwr.app import ArrayRecord, Error, Message
from flwr.common import log
from flwr.serverapp import Grid

from fedrobust.flower._compat import (
    CHUNK,
    ConfirmMessageReceivedRequest,
    ObjectTree,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    is_http_grid,
    make_pull_object_fn_protobuf,
    runtime_client,
    set_message_id,
)
from fedrobust.flower.commit_reveal import budget_of
from fedrobust.flower.quarantine import Quarantine
from fedrobust.flower.replies import SILENT, generated
from fedrobust.flower.salt import salted, take_ids
from fedrobust.flower.unfolding import TooLarge, read_reply
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.text import printable

__all__ = ["CHUNK", "GuardedGrid", "OutageError", "TooLarge", "limited", "read_reply"]

UNREADABLE = 11  # a code of our own, beyond Flower's
SLACK = 2**20  # bytes of a reply beside its arrays
ITEM = 4  # bytes of a float32
SHORTEST, SHARE = 0.1, 0.1  # seconds between two looks for replies, and share of the waiting so far
OUTAGE = 300.0  # seconds for which a SuperLink that fails is asked again
LONGEST_PAUSE = 30.0  # seconds between two tries

T = TypeVar("T")


class OutageError(RuntimeError):
    """A SuperLink that did not recover."""


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
        Seconds between two looks for new replies, at most: shorter ones come first.
    outage
        Seconds for which a SuperLink that answers 5xx, or nothing, is asked again.

    Attributes
    ----------
    quarantine
        Who is waited for how long.

    Notes
    -----
    A reply may have as many bytes for each client as the arrays that it answers, and ``SLACK``; to
    an order of commit and reveal, as many as the order asks for.
    Nothing beyond that is read, and nothing is unfolded before its size is known. A reply that is
    too large, too deep, or no message at all becomes an error reply of its node: it costs the vote.
    Replies are pulled as they come, and a node may take until the deadline to send one: what is
    there is kept, and nobody else waits for the rest.

    What is sent is salted: no node can compute the id of a message or object before it is there.
    """

    def __init__(
        self, inner: Grid, *, clients: int = 1, poll: float = 1.0, outage: float = OUTAGE
    ) -> None:
        super().__init__(inner)
        self._clients = clients
        self._poll = poll
        self._outage = outage
        self.quarantine = Quarantine()
        self._owed: dict[str, Message] = {}
        self._arriving: dict[str, _Arriving] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, and pull replies until all are there or the time is up.

        Raises
        ------
        OutageError
            If the SuperLink fails for longer than ``outage``.
        """
        if not is_http_grid(self._inner):
            return list(self._inner.send_and_receive(messages, timeout=timeout))
        self._settle()
        waiting = self._push(list(messages))
        begin = time.monotonic()
        waits = {i: self.quarantine.wait(_node(m), timeout) for i, m in waiting.items()}
        until = {i: math.inf if wait is None else begin + wait for i, wait in waits.items()}
        replies: list[Message] = []
        while waiting:
            replies += self._arrived(waiting)
            now = time.monotonic()
            if not waiting or all(now >= until[i] for i in waiting):
                break
            time.sleep(min(self._poll, max(SHORTEST, SHARE * (now - begin))))
        for message in waiting.values():
            self.quarantine.strike(_node(message), SILENT)
        self._owed |= waiting
        return replies

    def _push(self, messages: list[Message]) -> dict[str, Message]:
        """Send salted copies; return the messages that were sent, by id.

        A node in quarantine that still owes an answer is not asked: it would work on the old
        question first, and miss this one too.
        """
        owing = {_node(message) for message in self._owed.values()}
        held = {_node(m) for m in messages if self.quarantine.holds(_node(m))}
        ordered = sorted(messages, key=lambda message: _node(message) in held)
        asked = [m for m in ordered if not (_node(m) in held and _node(m) in owing)]
        for message in messages:
            set_message_id(message, f"not sent {secrets.token_hex(8)}")

        def push() -> list[str]:
            copies = salted(asked)  # anew each time: what was half sent is not sent twice
            ids = list(cast(Any, self._inner).push_messages(copies))
            take_ids(asked, copies)
            return ids

        ids = self._patiently("sending a round's messages", push) if asked else []
        return {i: message for i, message in zip(ids, asked, strict=True) if i}

    def _arrived(self, waiting: dict[str, Message]) -> list[Message]:
        """Take what has come out of ``waiting`` and return it."""
        new = [i for i in waiting if i not in self._arriving]
        self._arriving |= self._patiently("waiting for replies", lambda: self._announced(new))
        replies = []
        for asked in [i for i in self._arriving if i in waiting]:
            reply = self._read(self._arriving[asked], waiting[asked])
            if reply is None:
                continue
            del self._arriving[asked]
            node = _node(waiting.pop(asked))
            if generated(reply, node):
                self.quarantine.strike(node, SILENT)
            elif reply.has_error() and reply.error.code == UNREADABLE:
                self.quarantine.strike(node, str(reply.error.reason))
            else:
                self.quarantine.good(node)
            replies.append(reply)
        return replies

    def _settle(self) -> None:
        """Look for answers that nobody waited for: they clear the SuperLink, and their nodes."""
        now = time.time()  # not monotonic: messages are stamped with the time of day
        for asked, message in list(self._owed.items()):
            if message.metadata.created_at + message.metadata.ttl < now:
                del self._owed[asked]
                self._arriving.pop(asked, None)
        new = [i for i in self._owed if i not in self._arriving]
        self._arriving |= self._patiently("looking for late replies", lambda: self._announced(new))
        for asked in [i for i in self._arriving if i in self._owed]:
            reply = self._read(self._arriving[asked], self._owed[asked])
            if reply is None:
                continue
            del self._arriving[asked]
            node = _node(self._owed.pop(asked))
            if not reply.has_error():
                self.quarantine.late(node)

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        """Call until it works; the SuperLink may fail for a while."""
        end, pause = time.monotonic() + self._outage, 1.0
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                told = _failure(error)
                if told is None:
                    raise
                if time.monotonic() + pause > end:
                    raise OutageError(
                        f"the SuperLink {told} while {what}, for {self._outage:g} s: "
                        "see its log, then run again with --resume"
                    ) from error
                log(WARNING, "the SuperLink %s while %s: again in %g s", told, what, pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _announced(self, asked: list[str]) -> dict[str, _Arriving]:
        """Return the replies that nodes have begun to send, by what they answer."""
        if not asked:
            return {}
        client = runtime_client(cast(Any, self._inner))
        found = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        return {
            proto.metadata.reply_to_message_id: _Arriving(proto.metadata.message_id, tree)
            for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True)
            if proto.metadata.reply_to_message_id in asked
        }

    def _read(self, arriving: _Arriving, asked: Message) -> Message | None:
        """Return a reply, an error reply that says why it cannot be one, or None for not yet."""
        run, node = self._inner.run.run_id, cast(Any, self._inner).node
        client = runtime_client(cast(Any, self._inner))
        fetch = make_pull_object_fn_protobuf(client.PullObject, node, run)
        own = budget_of(asked)
        size = _array_bytes(asked) if own is None else own.size
        most_bytes = self._clients * (size + SLACK)
        try:
            with limited(client, most_bytes):
                reply = read_reply(
                    arriving.tree,
                    fetch,
                    most_bytes=most_bytes,
                    clients=self._clients,
                    arrays=0 if own is None else own.arrays,
                    records=0 if own is None or own.arrays else own.size,
                    contents=arriving.contents,
                )
            if reply.metadata.reply_to_message_id != asked.metadata.message_id:
                raise ValueError("the reply is to another message than its envelope says")
        except (ObjectUnavailableError, httpx.HTTPError):
            return None  # not there yet, or the SuperLink fails: at the next look
        except Exception as error:  # whatever a hostile reply breaks, it costs only its own vote
            reason = f"unreadable reply ({type(error).__name__}: {printable(error, limit=160)})"
            reply = Message(Error(code=UNREADABLE, reason=reason), reply_to=asked)
        confirm = ConfirmMessageReceivedRequest(
            node=node, run_id=run, message_object_id=arriving.message_id
        )
        self._patiently("confirming a reply", lambda: client.ConfirmMessageReceived(confirm))
        return reply


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


def _node(message: Message) -> int:
    return message.metadata.dst_node_id


def _failure(error: httpx.HTTPError) -> str | None:
    """Say what a SuperLink that may recover does; None for an answer that will not change."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return f"answers HTTP {status}" if status >= 500 else None
    return f"does not answer ({type(error).__name__})"


def _array_bytes(message: Message) -> int:
    """Count the bytes of a message's arrays, without making them."""
    return sum(
        math.prod(array.shape) * ITEM
        for record in message.content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )
