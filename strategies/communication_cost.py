"""Bytes and seconds of a round, for its row."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fedrobust.experiment.schema import Server
from fedrobust.flower.screening import Reply


def traffic(
    server: Server, replies: Collection[Reply], down: int, asked: Collection[int]
) -> dict[str, Any]:
    """Return the bytes of a round, and the times that were asked for.

    ``bytes_up`` counts the arrays of accepted replies, ``bytes_down`` those of all messages sent.
    ``line_seconds`` is what one client's share of both takes on a line of ``server.bandwidth``
    bits per second: the paper's C(s). ``times`` sums what clients say that they spent.
    """
    up = sum(reply.size for reply in replies)
    row: dict[str, Any] = {"bytes_up": up, "bytes_down": down}
    if server.bandwidth and asked:
        # The bytes up are those of accepted replies, so they are divided by those alone.
        share = up / max(len(replies), 1) + down / len(asked)
        row["line_seconds"] = round(8 * share / server.bandwidth, 6)  # 8 bits a byte
    if server.times:
        keys = sorted({key for reply in replies for key in reply.times})
        sums = {key: sum(reply.times[key] for reply in replies) for key in keys}
        row["times"] = {
            key.removesuffix("-seconds"): round(value, 6) for key, value in sums.items()
        }
    return row
