"""Many logical clients over a few host nodes: one message a host instead of one a client."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from logging import WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust.flower import blocks
from fedrobust.flower.adversary_grid import ADVERSARY
from fedrobust.flower.cohort_host import COHORT, REMEMBERS, ROWS, STATUS
from fedrobust.flower.in_process import RAISED, stamp
from fedrobust.flower.quantized_arrays import payload
from fedrobust.flower.serialization import read_setting, tensor_of
from fedrobust.flower.shared_rows import Handle, RowsFile
from fedrobust.flower.update_matrix import UpdateMatrix
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.text import printable

AT_ONCE = 2**29  # bytes of replies that a host may have to hold in one message
DIED = 0  # Flower's ErrorCode.UNKNOWN: the engine's word for a worker that is gone
LIVES = 2  # so many times a host may die
UNMENTIONED = "error: the host did not mention this client"
Group = tuple[int, list[Message]]  # a host, and the messages of its clients that go as one


class HostsLostError(RuntimeError):
    """Too many hosts of a simulation died for the run to go on."""


class CohortGrid(WrappedGrid):
    """Show the strategy ``clients`` logical nodes 1..clients, carried by the nodes of ``inner``.

    Parameters
    ----------
    inner
        Any grid; each of its nodes is a host and must serve cohorts (``serve_cohort``).
    clients
        How many logical clients. Client i lives on host i modulo the number of hosts, for the
        whole run, so that its state stays with it.
    hosts
        Use at most this many nodes of ``inner``; 0 uses all.
    at_once
        Bytes that one host's reply should not exceed, counting each client's as large as what it
        was sent. Larger cohorts travel in parts, a host's next part after its last came back:
        a message is held whole, several times over, on its way.
    shared
        Makes rows that hosts on this machine write their clients' updates into; None: updates
        travel as bytes.
    asked
        How many clients are asked in a round, at most: so many rows are shared.

    Notes
    -----
    Hosts are trusted to keep their clients apart: this grid is for simulation. A client that
    raises, or does not answer, costs its own reply only.

    The work of a host that died is asked for again in the same round: what it remembered is kept
    by Flower's engine, which gives it to another worker. All draws have an address, so the numbers
    are the same. A host that died twice is out, and its clients move to the others.
    """

    def __init__(
        self,
        inner: Grid,
        *,
        clients: int,
        hosts: int = 0,
        at_once: int = AT_ONCE,
        shared: RowsFile | None = None,
        asked: int = 0,
    ) -> None:
        super().__init__(inner)
        self._clients = clients
        nodes = sorted(inner.get_node_ids())
        if not nodes:
            raise ValueError("a cohort grid needs at least one host node, found none")
        self._hosts = nodes[: hosts or None]
        self._at_once = at_once
        self._ids = count(1)
        self._shared = shared
        self.updates = UpdateMatrix(asked, shared) if shared else UpdateMatrix()
        self._like = torch.empty(0)
        self._deaths: Counter[int] = Counter()
        self._remembering: set[int] = set()

    def get_node_ids(self) -> list[int]:
        """Return the logical nodes 1..clients."""
        return list(range(1, self._clients + 1))

    def get_nodes(self) -> list[Any]:
        """Return nothing: logical clients are in no register, their hosts are."""
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Pack the messages by host, send, and unpack one reply a logical client.

        Raises
        ------
        HostsLostError
            If fewer than half of the hosts are left, or one is lost that remembers its clients.
        """
        end = None if timeout is None else time.monotonic() + timeout
        stamped = [stamp(m, f"cohort-{next(self._ids)}") for m in messages]
        self._deal(stamped)
        result: list[Message] = []
        waves = list(self._pack(stamped))
        while waves:
            # All waves share the caller's time: a slow host leaves the others' next parts less of
            # it.
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            lost = self._exchange(waves.pop(0), left, result)
            waves[:0] = self._pack(lost) if lost else []
        return result

    def _exchange(
        self, wave: Sequence[Group], left: float | None, result: list[Message]
    ) -> list[Message]:
        """Send one message a group, unpack what comes; return the messages whose host died."""
        sent = [(self._host_message(*group), group) for group in wave]
        replies = list(self._inner.send_and_receive([m for m, _ in sent], timeout=left))
        # Only now: the inner grid gives messages their ids when it sends them.
        groups = {message.metadata.message_id: group for message, group in sent}
        lost: list[Message] = []
        for reply in replies:
            host, members = groups.pop(reply.metadata.reply_to_message_id, (0, []))
            if members and reply.has_error() and reply.error.code == DIED:
                self._lost(host, printable(reply.error.reason, limit=300))
                lost += members
            else:
                result += self._unpack(reply, host, members)
        if lost or groups:
            # Whoever is late, or is only thought to be dead, may still write into its rows.
            self.updates.withdraw()
            if self._shared is not None:
                self._shared.release()
        return lost

    def _lost(self, host: int, reason: str) -> None:
        """Count a host's death; out with one that died too often."""
        self._deaths[host] += 1
        out = [node for node in self._hosts if self._deaths[node] >= LIVES]
        alive = len(self._hosts) - len(out)
        log(WARNING, "host %s died (%s of %s alive): %s", host, alive, len(self._hosts), reason)
        if 2 * alive < len(self._hosts) or not alive:
            raise HostsLostError(
                f"{len(out)} of {len(self._hosts)} hosts died {LIVES} times each, fewer than half "
                f"are left; the last one: {reason}"
            )
        if host in out and host in self._remembering:
            raise HostsLostError(
                f"a host died {LIVES} times, and with it what its clients remember: {reason}"
            )

    def _host_of(self, message: Message) -> int:
        """Return the host of a logical client; where it is out, one of the others."""
        client = message.metadata.dst_node_id - 1
        host = self._hosts[client % len(self._hosts)]
        if self._deaths[host] < LIVES:
            return host
        alive = [node for node in self._hosts if self._deaths[node] < LIVES]
        return alive[client % len(alive)]

    def _deal(self, messages: Sequence[Message]) -> None:
        """Give clients that are to train their rows, in the order in which they were asked."""
        models: dict[int, Tensor | None] = {}  # many messages share one content
        for message in messages if self._shared is not None else ():
            content = id(message.content)
            if content not in models:
                models[content] = _trained_model(message)
            model, client = models[content], message.metadata.dst_node_id - 1
            if model is not None and self.updates.free_for(client):
                if self._like.shape != model.shape:
                    self._like = torch.empty(model.shape)  # rows are in this machine's memory
                self.updates.row(client, self._like)

    def _slots(self, group: Sequence[Message]) -> list[int] | None:
        """Return the shared rows of a group's clients; None where updates travel as bytes."""
        if self._shared is None or self._shared.handle is None:
            return None
        if _trained_model(group[0]) is None:
            return None
        clients = [m.metadata.dst_node_id - 1 for m in group]
        known = all(self.updates.has(client) for client in clients)
        return [self.updates.slot(client) for client in clients] if known else None

    def _pack(self, messages: Iterable[Message]) -> Iterator[list[Group]]:
        """Group messages that carry the same content to the same host; yield what may go at once.

        Groups of the same host with other contents go along: they are few and small.
        """
        groups: dict[tuple[int, int, str], list[Message]] = defaultdict(list)
        for message in messages:
            host = self._host_of(message)
            groups[host, id(message.content), message.metadata.message_type].append(message)
        parts: dict[int, list[Group]] = defaultdict(list)
        for (host, _, _), group in groups.items():
            size = max(1, self._at_once // max(1, payload(group[0].content)))
            if self._slots(group) is not None:
                size = len(group)  # the updates stay where they are
            for number, first in enumerate(range(0, len(group), size)):
                parts[number].append((host, group[first : first + size]))
        yield from parts.values()

    def _host_message(self, host: int, group: Sequence[Message]) -> Message:
        first = group[0]
        content = RecordDict(dict(first.content.items()))
        clients = [m.metadata.dst_node_id - 1 for m in group]
        content[COHORT] = ConfigRecord({"clients": clients, "of": self._clients})
        slots = self._slots(group)
        if slots is not None and self._shared is not None and self._shared.handle is not None:
            content[ROWS] = ConfigRecord(self._shared.handle.settings(slots))
        ttl = first.metadata.ttl
        kind, label = first.metadata.message_type, first.metadata.group_id
        return Message(content, host, kind, ttl=ttl, group_id=label)

    def _unpack(self, reply: Message, host: int, members: Sequence[Message]) -> list[Message]:
        """Return the logical clients' own replies; an error of their host is that of each."""
        if reply.has_error():
            return [Message(reply.error, reply_to=member) for member in members]
        if read_setting(reply.content, STATUS, REMEMBERS) is True:
            self._remembering.add(host)
        handle = self._shared.handle if self._shared is not None else None
        return unpack(reply.content, members, self.updates, handle)


def unpack(
    content: RecordDict,
    members: Sequence[Message],
    matrix: UpdateMatrix | None = None,
    handle: Handle | None = None,
) -> list[Message]:
    """Return the logical clients' own replies out of what ``serve_cohort`` answered for them.

    Parameters
    ----------
    content
        The host's reply.
    members
        The messages of its clients; who is silent has no reply.
    matrix, handle
        Of the rows that the host was told to write; None: all travelled as bytes.
    """
    try:
        parts, wrong = blocks.unpack(content, matrix or UpdateMatrix(), handle)
    except Exception as error:  # whatever is in it
        said = f"the host's reply is unreadable ({type(error).__name__}: {printable(error)})"
        return [_failed(member, said) for member in members]
    result = []
    for member in members:
        client = member.metadata.dst_node_id - 1
        if client in wrong:
            result.append(_failed(member, wrong[client]))
        elif client in parts:
            result.append(Message(RecordDict(parts[client]), reply_to=member))
        else:
            word = str(read_setting(content, STATUS, str(client)) or UNMENTIONED)
            if word != "silent":
                result.append(_failed(member, word.removeprefix("error: ")))
    return result


def _failed(member: Message, reason: str) -> Message:
    return Message(Error(code=RAISED, reason=reason), reply_to=member)


def _trained_model(message: Message) -> Tensor | None:
    """Return the model (d,) of a message that asks a client to train it; None for any other."""
    content = message.content
    if message.metadata.message_type != "train":
        return None
    if read_setting(content, ADVERSARY, "task") == "craft":
        return None
    arrays = content.get("arrays")
    if not isinstance(arrays, ArrayRecord) or "model" not in arrays:
        return None
    model = tensor_of(arrays["model"])
    return model if model.dim() == 1 and model.dtype == torch.float32 else None
