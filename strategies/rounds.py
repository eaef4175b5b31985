"""The rounds of a run, from any of them on: Flower's ``Strategy.start``, but resumable."""

from __future__ import annotations

from collections.abc import Callable
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


def train(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    *,
    rounds: int,
    timeout: float,
    evaluate: Callable[[int, ArrayRecord], Any],
    after: int | None = None,
) -> ArrayRecord:
    """Call a strategy's training hooks round by round and return the final arrays.

    Parameters
    ----------
    strategy
        ``configure_train`` and ``aggregate_train`` are called as Flower's own ``start`` calls
        them; arrays are kept where the strategy returns none.
    arrays
        The model to start from.
    rounds, timeout
        Last round; seconds to wait for the replies of one.
    evaluate
        Called with each round and its arrays; first with round 0, where the run starts anew.
    after
        The round that ``arrays`` come from, where a run is continued.
    """
    if after is None:
        evaluate(0, arrays)
    for now in range((after or 0) + 1, rounds + 1):
        log(INFO, "[ROUND %s/%s]", now, rounds)
        asked = strategy.configure_train(now, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(asked, timeout=timeout)
        aggregated, _ = strategy.aggregate_train(now, replies)
        arrays = aggregated or arrays
        evaluate(now, arrays)
    return arrays
