"""Nodes that cost the others their time: waited for less and less, until they behave again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedrobust.flower.cohort_grid import CohortGrid
from fedrobust.flower.replies import SILENT

FULL = 2.0  # strikes up to which a node is waited for as long as everybody
MOST = 7.0  # strikes that are counted: it is then waited for 1/64 of the deadline
FORGIVEN = 0.25  # strikes that a good reply takes off


@dataclass
class Standing:
    """One node's record.

    Attributes
    ----------
    strikes
        Silences and broken replies, less what was forgiven.
    reason
        The last of them.
    count
        All of them, since the run began.
    falls
        How often it has come into quarantine.
    kept
        Late but good replies in a row since it did.
    """

    strikes: float = 0.0
    reason: str = ""
    count: int = 0
    falls: int = 0
    kept: int = 0


@dataclass
class Quarantine:
    """Who is waited for how long.

    A silence, a reply that breaks the protocol and a proven falsehood are one strike each; a good
    reply in time takes a quarter of one off, so that a node that is silent every other round gets
    there too, and one that fails in one round of ten never does. From two strikes on a node is
    waited for half of the deadline, then a quarter, and so on, down to 1/64: at the least, as long
    as the others take. It is asked after the others, and not while it owes an answer that may still
    come.

    A slow node is not lost: an answer that comes after the server stopped waiting, but before the
    deadline, shows that the node would have made it, and it is waited for in full again. A node
    that keeps falling silent has to show it as often in a row as it has fallen.
    """

    nodes: dict[int, Standing] = field(default_factory=dict)

    def wait(self, node: int, timeout: float | None) -> float | None:
        """Return the seconds for which a node is waited for; None for ever."""
        strikes = self._strikes(node)
        if timeout is None or strikes < FULL:
            return timeout
        return timeout * 0.5 ** (int(strikes) - 1)

    def holds(self, node: int) -> bool:
        """Whether a node is in quarantine."""
        return self._strikes(node) >= FULL

    def strike(self, node: int, reason: str) -> None:
        """Note a silence, a broken reply or a proven falsehood."""
        standing = self.nodes.setdefault(node, Standing())
        held = self.holds(node)
        standing.strikes = min(MOST, standing.strikes + 1)
        standing.reason, standing.kept = reason, 0
        standing.count += 1
        if not held and self.holds(node):
            standing.falls += 1

    def good(self, node: int) -> None:
        """Note a good reply in time."""
        if node in self.nodes:
            standing = self.nodes[node]
            standing.strikes = max(0.0, standing.strikes - FORGIVEN)

    def late(self, node: int) -> None:
        """Note a reply that came when nobody waited any more, but before the deadline."""
        if self.holds(node):
            standing = self.nodes[node]
            standing.kept += 1
            if standing.kept >= standing.falls:
                # Not to zero: one silence more and it is held again.
                standing.strikes, standing.kept = FULL - 1, 0

    def report(self, clients: Mapping[int, int]) -> list[dict[str, Any]]:
        """Return who is in quarantine, for a round's row: client, node, count and reason."""
        return [
            {"client": clients[node], "node": node, "count": each.count, "reason": each.reason}
            for node, each in sorted(self.nodes.items())
            if self.holds(node) and node in clients
        ]

    def _strikes(self, node: int) -> float:
        return self.nodes[node].strikes if node in self.nodes else 0.0


def quarantine_of(grid: Any) -> Quarantine | None:
    """Return the quarantine of the guarded grid inside a grid; None where there is none.

    Behind a grid that packs clients into hosts there is none either: a host's clients share it.
    """
    while grid is not None:
        if isinstance(grid, CohortGrid):
            return None
        found = getattr(grid, "quarantine", None)
        if isinstance(found, Quarantine):
            return found
        grid = getattr(grid, "inner", None)
    return None


def struck(
    grid: Any, reasons: Mapping[int, str], clients: Mapping[int, int]
) -> dict[str, list[dict[str, Any]]]:
    """Note what a strategy refused, and return what the round's row says of the quarantine.

    Parameters
    ----------
    reasons
        Client -> why its reply was refused, or how it was caught. Silences the grid has counted.
    clients
        Node id -> client.
    """
    quarantine = quarantine_of(grid)
    if quarantine is None:
        return {}
    for node, client in clients.items():
        if client in reasons and not reasons[client].startswith(SILENT):
            quarantine.strike(node, reasons[client])
    found = quarantine.report(clients)
    return {"quarantine": found} if found else {}
