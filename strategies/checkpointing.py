"""What a run must remember to continue as if it had never stopped, and when it is written down.

There is no generator among it: every draw comes from a generator made for its (seed, purpose,
round, client), so the round's number is the generators' whole state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.serverapp import Grid

from fedrobust.attacks import attack_record
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import node_state
from fedrobust.runs.checkpoint import CheckpointError

Tree = dict[str, Any]
SHARE = 0.05  # of the run's time that checkpoints may take


class Remembering(Protocol):
    """A strategy whose memory across rounds is one tree."""

    def snapshot(self) -> Tree:
        """Return the memory."""

    def restore(self, tree: Tree) -> None:
        """Take a memory over."""


@dataclass
class Checkpoints:
    """Where a run's state goes, and the state that it continues from.

    Attributes
    ----------
    write
        Makes a tree durable.
    saved
        The tree to continue from; None starts anew.
    share
        Most of the run's time that writing may take: a round whose turn comes too early is not
        written, and would be run again after a kill. 0 writes every round.
    """

    write: Callable[[Tree], None]
    saved: Tree | None = None
    share: float = SHARE
    _next: float = field(default=0.0, init=False)

    def offer(self, round: int, *, last: bool, state: Callable[[], Tree]) -> None:
        """Write the state after a round if its turn has come; the last round's always."""
        began = time.monotonic()
        if last or began >= self._next:
            self.write({"round": round, **state()})
            ended = time.monotonic()
            self._next = ended + (ended - began) / self.share if self.share else 0.0


def state_of(strategy: Remembering, grid: Grid, model: Any) -> Tree:
    """Return everything that the next round depends on, beside the experiment."""
    return {"model": model, "strategy": strategy.snapshot(), "nodes": node_state.snapshot(grid)}


def continue_from(saved: Tree, strategy: Remembering, grid: Grid, experiment: Experiment) -> int:
    """Put a saved state back and return its round.

    Raises
    ------
    CheckpointError
        If the clients have memory that the checkpoint cannot hold: on real nodes it is theirs.
    """
    if saved["nodes"] is not None and node_state.snapshot(grid) is not None:
        node_state.restore(grid, saved["nodes"])
    elif remembers(experiment):
        raise CheckpointError(
            "worker_momentum, local statistics, pseudo labels and attacks that watch the model live"
            " in the nodes' memory, which a checkpoint of this grid does not hold: run again"
            " without --resume"
        )
    strategy.restore(saved["strategy"])
    return int(saved["round"])


def remembers(experiment: Experiment) -> bool:
    """Whether clients keep anything from round to round."""
    watches = attack_record(experiment.attack["name"]).remembers
    keeps = experiment.batchnorm["name"] == "local" or experiment.semi.mode == "pseudo"
    return experiment.worker_momentum > 0 or watches or keeps
