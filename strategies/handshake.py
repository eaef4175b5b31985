"""Who is there: every node says once which client it is and which protocol it speaks."""

from __future__ import annotations

import re
import time
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrobust.flower import Rejected, read_setting
from fedrobust.flower.replies import collect
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.text import printable
from fedrobust.version import __version__


class Foreign(str):
    """The version of a node that declares another protocol."""


class ProtocolError(RuntimeError):
    """Too few nodes, or nodes that speak another protocol."""


def await_clients(
    grid: Grid, *, expected: int, needed: int = 1, deadline: float = 60.0
) -> dict[int, int]:
    """Give every node its place: the order in which replies come must not matter.

    Parameters
    ----------
    grid
        Nodes answer ``query.hello`` with their number and protocol.
    expected
        How many clients the experiment has; waits until as many nodes are connected.
    needed
        Fewest nodes of the right protocol with which the run can start.
    deadline
        Seconds to wait, for the nodes and then for their answers.

    Returns
    -------
    Node id -> client. A node that was registered as ``client-N`` is client N, whatever it says. The
    number that any other claims is a place in the order and nothing else: where two claim one, the
    lower node id has it, and the others take the free places. A node that answers
    nonsense, or nothing, stays: its replies are screened like any other. One that declares
    another protocol is left out.

    Raises
    ------
    ProtocolError
        If too few nodes are connected, or too few speak this protocol.
    """
    nodes = _wait_for(grid, expected, deadline)
    same = RecordDict()  # one content: a cohort host gets one message for all its clients
    asked = [Message(same, node, "query.hello", ttl=deadline) for node in sorted(nodes)]
    replies = list(grid.send_and_receive(asked, timeout=deadline))
    found = collect(asked, replies, _claim)
    # Who did not answer has a place all the same: f of the clients may be silent, and come later.
    claims = dict.fromkeys(nodes) | found.accepted
    foreign = {node: claim for node, claim in claims.items() if isinstance(claim, Foreign)}
    strangers = [f"node {node} runs fedrobust {claim}" for node, claim in foreign.items()]
    claims = {node: claim for node, claim in claims.items() if node not in foreign}
    silent = [found.refused[node] for node in claims if node in found.refused]
    _enough(claims, needed, strangers, silent)
    return _places(claims, expected, registered(grid))


def _claim(reply: Message) -> Any:
    """Return the place that a node claims, or which other protocol it speaks."""
    if reply.has_error():
        raise Rejected(printable(reply.error.reason, limit=500))
    protocol = read_setting(reply.content, "hello", "protocol")
    # Anything but a whole number is nonsense: its sender stays, and its replies are screened.
    if isinstance(protocol, int) and protocol != PROTOCOL:
        told = printable(read_setting(reply.content, "hello", "version"), limit=30)
        return Foreign(f"{told} (protocol {protocol})")
    return read_setting(reply.content, "hello", "client")


def registered(grid: Grid) -> dict[int, int]:
    """Return the clients of the nodes that were registered by name: ``client-3`` is client 3."""
    # Grids inside one process keep no register of names.
    known = getattr(grid, "get_nodes", None)
    names = {int(info.node_id): str(info.name) for info in known()} if known else {}
    found = {node: re.fullmatch(r"client-(\d{1,6})", name) for node, name in names.items()}
    return {node: int(match[1]) for node, match in found.items() if match}


def _enough(claims: dict[int, Any], needed: int, strangers: list[str], silent: list[str]) -> None:
    if strangers and len(claims) < needed:
        raise ProtocolError(
            f"{strangers[0]}, the server {__version__} (protocol {PROTOCOL}): "
            "install one version everywhere"
        )
    # Nobody at all: rather a fault of the app than of every node, so its first reason is shown.
    if len(silent) >= len(claims):
        raise ProtocolError(f"no node answered the roll call: {silent[0][:500]}")


def _places(claims: dict[int, Any], expected: int, register: dict[int, int]) -> dict[int, int]:
    """Give each node its registered place, or the one it claims, or the first free one."""
    places: dict[int, int] = {}
    # Registered ones first: a node that merely claims their number must not be there before them.
    for node in [*sorted(set(claims) & set(register)), *sorted(set(claims) - set(register))]:
        claim = register.get(node, claims[node])
        if isinstance(claim, int) and 0 <= claim < expected and claim not in places.values():
            places[node] = claim
    free = (place for place in range(expected) if place not in set(places.values()))
    for node in sorted(claims):
        if node not in places and (place := next(free, None)) is not None:
            places[node] = place
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _wait_for(grid: Grid, expected: int, deadline: float) -> list[int]:
    """Wait until enough nodes are there."""
    end = time.monotonic() + deadline
    while len(nodes := list(grid.get_node_ids())) < expected:
        if time.monotonic() > end:
            raise ProtocolError(f"{expected} clients are needed, {len(nodes)} nodes are connected")
        # Not a whole second where the deadline is shorter than that.
        time.sleep(min(1.0, deadline))
    return nodes
