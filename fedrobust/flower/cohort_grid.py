"""Many logical clients over a few host nodes: one message a host instead of one a client."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedrobust.failures import PluginError
from fedrobust.flower.in_process import RAISED, Together, answer, stamp
from fedrobust.flower.quantized_arrays import payload
from fedrobust.flower.serialization import read_setting
from fedrobust.flower.wrapping import WrappedGrid

COHORT = "fedrobust.cohort"
AT_ONCE = 2**29  # bytes of replies that a host may have to hold in one message
MISTAKE = "PluginError: "  # begins the reason of a reply that an attack's own mistake cost
UNMENTIONED = "error: the host did not mention this client"
Handler = Callable[[Message, Context], Message | None]


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

    Notes
    -----
    Hosts are trusted to keep their clients apart: this grid is for simulation. A client that
    raises, or does not answer, costs its own reply only.
    """

    def __init__(
        self, inner: Grid, *, clients: int, hosts: int = 0, at_once: int = AT_ONCE
    ) -> None:
        super().__init__(inner)
        self._clients = clients
        nodes = sorted(inner.get_node_ids())
        if not nodes:
            raise ValueError("a cohort grid needs at least one host node, found none")
        self._hosts = nodes[: hosts or None]
        self._at_once = at_once
        self._ids = count(1)

    def get_node_ids(self) -> list[int]:
        """Return the logical nodes 1..clients."""
        return list(range(1, self._clients + 1))

    def get_nodes(self) -> list[Any]:
        """Return nothing: logical clients are in no register, their hosts are."""
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Pack the messages by host, send, and unpack one reply a logical client."""
        end = None if timeout is None else time.monotonic() + timeout
        result: list[Message] = []
        for wave in self._pack([stamp(m, f"cohort-{next(self._ids)}") for m in messages]):
            # All waves share the caller's time: a slow host leaves the others' next parts less of
            # it.
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            outer = {id(message): members for message, members in wave}
            sent = [message for message, _ in wave]
            replies = list(self._inner.send_and_receive(sent, timeout=left))
            # Only now: the inner grid gives messages their ids when it sends them.
            by_id = {m.metadata.message_id: outer[id(m)] for m in sent}
            for reply in replies:
                members = by_id.get(reply.metadata.reply_to_message_id, [])
                if reply.has_error():
                    result += [Message(reply.error, reply_to=member) for member in members]
                else:
                    result += unpack(reply.content, members)
        return result

    def _pack(self, messages: list[Message]) -> Iterator[list[tuple[Message, list[Message]]]]:
        """Group messages that carry the same content to the same host; yield what may go at once.

        Groups of the same host with other contents go along: they are few and small.
        """
        groups: dict[tuple[int, int, str], list[Message]] = defaultdict(list)
        for message in messages:
            host = self._hosts[(message.metadata.dst_node_id - 1) % len(self._hosts)]
            groups[host, id(message.content), message.metadata.message_type].append(message)
        parts: dict[int, list[tuple[int, list[Message]]]] = defaultdict(list)
        for (host, _, _), group in groups.items():
            size = max(1, self._at_once // max(1, payload(group[0].content)))
            for number, first in enumerate(range(0, len(group), size)):
                parts[number].append((host, group[first : first + size]))
        for wave in parts.values():
            yield [(self._host_message(host, group), group) for host, group in wave]

    def _host_message(self, host: int, group: list[Message]) -> Message:
        first = group[0]
        content = RecordDict(dict(first.content.items()))
        clients = [m.metadata.dst_node_id - 1 for m in group]
        content[COHORT] = ConfigRecord({"clients": clients, "of": self._clients})
        ttl = first.metadata.ttl
        kind, label = first.metadata.message_type, first.metadata.group_id
        return Message(content, host, kind, ttl=ttl, group_id=label)


def serve_cohort(
    handler: Handler, message: Message, context: Context, *, together: Together | None = None
) -> Message | None:
    """Answer a host's message by calling ``handler`` once for each logical client in it.

    ``together``, where given, answers for all of them instead: (messages, contexts, None) ->
    replies. There is no matrix to write into: the replies leave this process as bytes.

    A message without a cohort goes to the handler as it is.
    """
    if COHORT not in message.content:
        return handler(message, context)
    clients = list(read_setting(message.content, COHORT, "clients"))
    of = int(read_setting(message.content, COHORT, "of"))
    shared = {key: record for key, record in message.content.items() if key != COHORT}
    reply = RecordDict()
    status: dict[str, Any] = {}
    contexts = [_own_context(context, client, of) for client in clients]
    asked = [Message(RecordDict(dict(shared)), reply_to=message) for _ in clients]
    for client, inner in zip(clients, asked, strict=True):
        stamp(inner, f"{message.metadata.message_id}/{client}")
    one_by_one = (answer(handler, m, c) for m, c in zip(asked, contexts, strict=True))
    answers = together(asked, contexts, None) if together else one_by_one
    try:
        for client, own, answered in zip(clients, contexts, answers, strict=True):
            status[str(client)] = _collect(reply, client, answered)
            _keep_state(context, client, own.state)
    except PluginError as error:  # an exception ends at the host; its server ends the run on this
        word = f"error: {MISTAKE}{error}"
        status |= {str(client): word for client in clients if str(client) not in status}
    reply["status"] = ConfigRecord(status)
    return Message(reply, reply_to=message)


def _own_context(context: Context, client: int, clients: int) -> Context:
    prefix = f"{client}/"
    state = {k.removeprefix(prefix): v for k, v in context.state.items() if k.startswith(prefix)}
    return Context(
        run_id=context.run_id,
        node_id=client + 1,
        node_config={**context.node_config, "partition-id": client, "num-partitions": clients},
        state=RecordDict(state),
        run_config=context.run_config,
    )


def _keep_state(context: Context, client: int, state: RecordDict) -> None:
    for key, record in state.items():
        context.state[f"{client}/{key}"] = record


def _collect(reply: RecordDict, client: int, answered: Message | None) -> str:
    if answered is None:
        return "silent"
    if answered.has_error():
        return f"error: {answered.error.reason}"
    for key, record in answered.content.items():
        reply[f"{client}/{key}"] = record
    return "ok"


def unpack(content: RecordDict, members: list[Message]) -> list[Message]:
    """Return the logical clients' own replies out of what ``serve_cohort`` answered for them."""
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, record in content.items():
        client, _, name = key.partition("/")
        if name:
            parts[client][name] = record
    result = []
    for member in members:
        client = str(member.metadata.dst_node_id - 1)
        word = str(read_setting(content, "status", client) or UNMENTIONED)
        if word == "ok":
            result.append(Message(RecordDict(parts[client]), reply_to=member))
        elif word != "silent":
            error = Error(code=RAISED, reason=word.removeprefix("error: "))
            result.append(Message(error, reply_to=member))
    return result
