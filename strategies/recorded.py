"""What every strategy here does alike: central evaluation, one row a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrobust.text import printables

Row = dict[str, Any]


class RecordedStrategy(Strategy):
    """The hooks of a strategy that asks nobody to evaluate, and its round's row.

    A base class, against our habit: Flower's ``Strategy`` demands these methods of a subclass.

    Parameters
    ----------
    on_row
        Called with each round's row when it is complete.
    """

    def __init__(self, on_row: Callable[[Row], None]) -> None:
        self._on_row = on_row
        self._row: Row = {"round": 0}
        self._started = time.perf_counter()

    def summary(self) -> None:
        """Say nothing: the caller prints the resolved experiment."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody: the evaluation is central, a vote a query of its own."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: nobody was asked."""
        return None

    def close_round(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Complete the round's row with the central evaluation and hand it out.

        Its texts are printable: some of them quote what a client wrote.
        """
        self._row |= {**metrics, "seconds": round(time.perf_counter() - self._started, 4)}
        self._on_row(printables(self._row))
        self._row = {"round": server_round + 1}
