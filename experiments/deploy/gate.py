"""A gate in front of Flower's SuperLink: strangers reach the nodes' routes only, nodes their own.

Flower serves control, tasks and nodes on one port, takes a node's word for whose reply it pushes,
and stores whatever it is sent. The gate is the outermost ASGI middleware of the SuperLink's own web
app: it sees each request before Flower does. ``experiments.deploy.superlink`` starts the two.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from experiments.deploy.gate_ledger import MIB, Accounts, Limits, Outcome, Refused, Softly
from fedrobust.flower import _compat as flower

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
HEALTH = "/health"
CONFIRMED = "/v1/runtime/confirm-message-received"
BODY = {FLEET + "push-object": 8 * MIB, FLEET + "push-messages": MIB}  # Flower's chunks have 5 MiB
SMALL_BODY = 64 * 2**10
LONGEST_WAIT = 60.0  # seconds between two pieces of a body
OPERATORS = ("127.0.0.1", "::1")
TOLD = 20  # refusals of one kind and source that are logged one by one

log = logging.getLogger("fedrobust.gate")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class Gate:
    """Let operators reach everything, and everybody else the nodes' routes, within bounds.

    Parameters
    ----------
    app
        The SuperLink's web app.
    operators
        Addresses or networks of whoever submits runs and registers nodes: "10.0.0.0/8". The
        machine itself, by the address at which it is reached, is one always: the server app is.
    limits
        What a node may push.
    buffered
        Bytes of requests that may wait in memory, of all senders together.

    Notes
    -----
    Answers of its own: 403 for a route or a name that is not the sender's, 408 for a body that
    does not come, 409 for a second reply, 413 for too much, 400 for a request that is none, 503
    while too many are waiting. Where an honest node may be in the same place after a restart of
    the SuperLink (a message or an object that the gate does not know), the answer is Flower's own
    for what it does not know: a node goes on with the next message.
    """

    app: App
    operators: tuple[str, ...] = OPERATORS
    limits: Limits = field(default_factory=Limits)
    buffered: int = 2**30

    def __post_init__(self) -> None:
        self._networks = [network(text) for text in self.operators]
        self._ledger = Accounts(self.limits)
        self._waiting = 0
        self._refusals: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # Flower has none
        else:
            try:
                await self._pass(scope, receive, send)
            except Refused as refusal:
                self._tell(scope, refusal)
                await answer(send, refusal.status, refusal.reason)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == HEALTH:
            await self.app(scope, receive, send)
        elif path.startswith(FLEET):
            await self._from_node(path, scope, receive, send)
        elif not self._is_operator(scope):
            raise Refused(403, "this route is for operators")
        elif path == CONFIRMED:
            body = await self._read(scope, receive, SMALL_BODY)
            self._waiting -= len(body)
            self._ledger.confirmed(body)
            await self.app(scope, replay(body, receive), send)
        else:
            await self.app(scope, receive, send)

    async def _from_node(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold a node's request against what the node was told and has pushed before."""
        body = await self._read(scope, receive, BODY.get(path, SMALL_BODY))
        try:
            outcome = self._ledger.judge(path.removeprefix(FLEET), body)
            seen = Seen(send, outcome, keep=path == FLEET + "pull-messages")
            try:
                await self.app(scope, replay(body, receive), seen)
            finally:
                seen.end(False)
        except Softly as soft:
            self._tell(scope, Refused(200, soft.reason))
            await answer(send, 200, soft.content, kind=flower.MEDIA_TYPE)
        finally:
            self._waiting -= len(body)

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """Read a body, unless it is announced as, or turns out to be, larger than the limit.

        Its bytes are counted as waiting: the caller takes them off again.
        """
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            raise Refused(
                413, f"a body of {announced[:20].decode('latin-1')} bytes, beyond {limit}"
            )
        pieces: list[bytes] = []
        try:
            await self._collect(receive, limit, pieces)
        except BaseException:
            self._waiting -= sum(map(len, pieces))
            raise
        return b"".join(pieces)

    async def _collect(self, receive: Receive, limit: int, pieces: list[bytes]) -> None:
        size, more = 0, True
        while more:
            try:
                event = await asyncio.wait_for(receive(), LONGEST_WAIT)
            except TimeoutError:
                raise Refused(408, f"nothing more of the body in {LONGEST_WAIT:g} s") from None
            if event["type"] == "http.disconnect":
                raise Refused(400, "the sender went away")
            piece = event.get("body", b"")
            size, more = size + len(piece), event.get("more_body", False)
            if size > limit:
                raise Refused(413, f"a body of more than {limit} bytes")
            if self._waiting + len(piece) > self.buffered:
                raise Refused(503, "too many requests at once: again later")
            self._waiting += len(piece)
            pieces.append(piece)

    def _is_operator(self, scope: Scope) -> bool:
        here, there = host(scope.get("server")), host(scope.get("client"))
        if there is None:
            return False
        return there == here or any(there in network for network in self._networks)

    def _tell(self, scope: Scope, refusal: Refused) -> None:
        """Log a refusal; of many of one kind and source the first ones, and every 1000th."""
        source = str(host(scope.get("client")))
        # A bound: whoever has many addresses would fill the table.
        if len(self._refusals) > 1000:
            self._refusals.clear()
        self._refusals[source, refusal.kind] += 1
        count = self._refusals[source, refusal.kind]
        if count <= TOLD or count % 1000 == 0:
            path = "".join(c for c in scope["path"][:80] if c.isprintable())
            log.warning("refused %s %s (%s): %s [%s]", source, path, refusal.status,
                        refusal.reason, count)  # fmt: skip


class Seen:
    """A ``send`` that notes the status, the size and, if asked, the bytes of a response.

    The outcome is told before the response's last piece goes out: a node that is quick asks for the
    objects that it was told of before this process comes back to the request.
    """

    def __init__(self, send: Send, outcome: Outcome, *, keep: bool) -> None:
        self._send, self._outcome, self._keep = send, outcome, keep
        self.status, self.size, self.body, self._ended = 500, 0, bytearray(), False

    async def __call__(self, event: Event) -> None:
        """Note an event and pass it on."""
        if event["type"] == "http.response.start":
            self.status = event["status"]
        elif event["type"] == "http.response.body":
            piece = event.get("body", b"")
            self.size += len(piece)
            if self._keep:
                self.body += piece
            if not event.get("more_body", False):
                self.end(self.status < 400)
        await self._send(event)

    def end(self, done: bool) -> None:
        """Tell the outcome, once: of a response without an end, that it failed."""
        if not self._ended:
            self._ended = True
            self._outcome(done, self.size, bytes(self.body))


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already, then what comes after it."""
    given = False

    async def again() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def answer(send: Send, status: int, content: str | bytes, *, kind: str = "") -> None:
    """Send one whole response: a sentence as JSON, or bytes of a kind."""
    body = content if isinstance(content, bytes) else json.dumps({"detail": content}).encode()
    headers = [
        (b"content-type", (kind or "application/json").encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def host(address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address of one end of a connection; IPv4 inside IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except (TypeError, ValueError, IndexError):
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


def network(text: str) -> Network:
    """Read an address or a network.

    Raises
    ------
    ValueError
        With the text, if it is neither.
    """
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no address or network, such as 10.0.0.0/8") from None
