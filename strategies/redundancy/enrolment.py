"""The beginning of a run: which nodes are the workers, and who computes the same bits."""

from __future__ import annotations

import time
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common import log
from flwr.serverapp import Grid

from fedrobust.flower import commit_reveal
from strategies.handshake import ProtocolError
from strategies.redundancy.exchange import Exchange, RoundLog, read_all
from strategies.redundancy.membership import Membership, with_profiles
from strategies.redundancy.settings import Settings


def numbered_workers(grid: Grid, *, workers: int, deadline: float) -> dict[int, int]:
    """Wait for enough nodes, and number the first ones by their ids: node -> worker.

    Raises
    ------
    ProtocolError
        If too few are connected before the deadline.
    """
    end = time.monotonic() + deadline
    while len(nodes := sorted(grid.get_node_ids())) < workers:
        if time.monotonic() > end:
            raise ProtocolError(f"{workers} workers are needed, {len(nodes)} nodes are connected")
        time.sleep(min(1.0, deadline))
    return {node: worker for worker, node in enumerate(nodes[:workers])}


def ask_profiles(
    exchange: Exchange,
    order: ConfigRecord,
    arrays: ArrayRecord,
    *,
    settings: Settings,
    members: Membership,
) -> tuple[Membership, float]:
    """Compare the bits of one gradient that every worker computes.

    Returns
    -------
    The membership without those that differ, and the tolerance to compare copies by: where bits
    differ and ``mixed`` is set, that one, and nobody is left out.

    Raises
    ------
    ProfileError
        If too few are alike; see `with_profiles`.
    """
    asked = members.asked(exchange.clients.values(), exchange.round)
    replies = exchange.ask(dict.fromkeys(asked, order), arrays=arrays)

    def read(message: Message, worker: int) -> tuple[str, bytes]:
        return commit_reveal.read_profile(message)

    # A log of its own: silence here is not held against the worker in the first round.
    told = read_all(replies, asked, read, RoundLog())
    alike = len({probe for _, probe in told.values()}) < 2
    if settings.tolerance or alike:
        return members, settings.tolerance
    if settings.mixed and not settings.coded:
        log(WARNING, "workers compute other bits: copies are compared by %s", settings.mixed)
        return members, settings.mixed
    q = (settings.replication - 1) // 2 if settings.coded else settings.q
    found = with_profiles(members, told, workers=settings.workers, q=q, coded=settings.coded)
    for worker, why in found.apart.items():
        log(WARNING, "worker %s is left out, it computes other bits: %s", worker, why)
    if found.counted:
        log(WARNING, "the %s workers left out count among the q=%s", found.counted, q)
    return found, settings.tolerance
