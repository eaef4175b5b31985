"""What every strategy here does alike: no evaluation by clients, one row a round, a memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

Row = dict[str, Any]


class RecordedStrategy(Strategy):
    """The hooks of a strategy that asks no client to evaluate, and says what a round was.

    A base class, against our habit: Flower's ``Strategy`` demands these methods of a subclass.

    Attributes
    ----------
    unresumable
        Why a run of this strategy cannot continue from a checkpoint; empty where it can. This is
        the one place that says so: such runs write no checkpoint and refuse to resume.
    first_row
        The first round that has a row: 0 is the initial model, where there is one.
    """

    unresumable: ClassVar[str] = ""
    first_row: ClassVar[int] = 0

    def __init__(self) -> None:
        self._row: Row = {"round": 0}  # round 0, the initial model, is evaluated too

    @property
    def row(self) -> Row:
        """What the last round was, without its evaluation."""
        return self._row

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on, as plain values and tensors."""
        raise NotImplementedError(self.unresumable)

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        raise NotImplementedError(self.unresumable)

    def summary(self) -> None:
        """Say nothing: the caller prints the resolved experiment."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody: what a client reports of the model's quality is a claim."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: nobody was asked."""
        return None
