"""The rounds of a run, from any of them on: Flower's ``Strategy.start``, but resumable."""

from __future__ import annotations

from collections.abc import Iterator
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


def rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    *,
    last: int,
    timeout: float,
    after: int | None = None,
) -> Iterator[tuple[int, ArrayRecord]]:
    """Yield each round and its arrays; the next round begins when they are asked for.

    Parameters
    ----------
    strategy
        ``configure_train`` and ``aggregate_train`` are called as Flower's own ``start`` calls
        them; arrays are kept where the strategy returns none.
    arrays
        The model to start from: round 0, unless the run is continued.
    last
        The last round.
    timeout
        Seconds to wait for the replies of one.
    after
        The round that ``arrays`` come from, where a run is continued; it is not yielded again.
    """
    if after is None:
        yield 0, arrays
    for server_round in range((after or 0) + 1, last + 1):
        log(INFO, "[ROUND %s/%s]", server_round, last)
        # A fresh config each round: Flower's strategies write into it.
        asked = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(asked, timeout=timeout)
        aggregated, _ = strategy.aggregate_train(server_round, replies)
        # An empty record is false as None is: either way the strategy took no step.
        arrays = aggregated or arrays
        yield server_round, arrays
