"""What a run must remember to continue as if it had never stopped, and when it is written down.

There is no generator among it: every draw comes from a generator made for its (seed, purpose,
round, client), so the round's number is the generators' whole state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedrobust import secret as hidden
from fedrobust.attacks import attack_record
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import array_of, node_state, tensor_of
from fedrobust.runs.checkpoint import CheckpointError
from strategies.base import RecordedStrategy
from strategies.modes import Mode, Setup

Tree = dict[str, Any]
SHARE = 0.05  # of the run's time that checkpoints may take


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

    def offer(self, server_round: int, *, last: bool, state: Callable[[], Tree]) -> None:
        """Write the state after a round if its turn has come; the last round's always."""
        # Not the time of day: a clock that is set back would put the next checkpoint off.
        began = time.monotonic()
        if last or began >= self._next:
            self.write({"round": server_round, **state()})
            ended = time.monotonic()
            # A write of one second is followed by 1 / share seconds without one, whatever the
            # disk's speed.
            self._next = ended + (ended - began) / self.share if self.share else 0.0


def resume(
    checkpoints: Checkpoints | None, mode: Mode, experiment: Experiment
) -> tuple[int | None, ArrayRecord]:
    """Return the round to continue after and its arrays; None and the initial ones without any.

    Raises
    ------
    CheckpointError
        If there is a checkpoint that this run cannot continue from.
    """
    if checkpoints is None or checkpoints.saved is None:
        return None, mode.arrays
    saved = checkpoints.saved
    after = continue_from(saved, mode.strategy, mode.grid, experiment)
    # In place: the evaluators hold this very list.
    mode.probes[:] = saved["probes"]
    return after, array_of(**saved["arrays"])


def keep(
    checkpoints: Checkpoints | None,
    mode: Mode,
    server_round: int,
    arrays: ArrayRecord,
    setup: Setup,
) -> None:
    """Write everything that the next round depends on, beside the experiment, if it is time."""
    if checkpoints is None or mode.strategy.unresumable:
        return

    experiment = setup.experiment

    def state() -> Tree:
        return {
            "first": mode.strategy.first_row,
            "arrays": {name: tensor_of(array) for name, array in arrays.items()},
            "strategy": mode.strategy.snapshot(),
            "nodes": node_state.snapshot(mode.grid),
            "probes": list(mode.probes),
            # In simulation the secret is the seed, which the settings hold: no second copy to
            # disagree.
            hidden.KEY: None if setup.secret == experiment.seed else setup.secret,
        }

    checkpoints.offer(server_round, last=server_round == experiment.rounds, state=state)


def continue_from(
    saved: Tree, strategy: RecordedStrategy, grid: Grid, experiment: Experiment
) -> int:
    """Put a saved state back and return its round.

    Raises
    ------
    CheckpointError
        If the strategy cannot continue, or if the clients have memory that the checkpoint cannot
        hold: on real nodes it is theirs.
    """
    # A run that began in one process may be continued over a grid of others, which hold no states.
    if saved["nodes"] is not None and node_state.snapshot(grid) is not None:
        node_state.restore(grid, saved["nodes"])
    elif remembers(experiment):
        raise CheckpointError(
            "worker_momentum, local statistics, pseudo labels, attacks that watch the model and"
            " the models of an ensemble's members live in the nodes' memory, which a checkpoint of"
            " this grid does not hold: run again without --resume"
        )
    if strategy.unresumable:
        raise CheckpointError(strategy.unresumable)
    strategy.restore(saved["strategy"])
    return int(saved["round"])


def remembers(experiment: Experiment) -> bool:
    """Whether clients keep anything from round to round."""
    if experiment.mode == "ensemble":
        return True
    record = attack_record(experiment.attack["name"])
    watches = record.remembers or record.asks_the_rule  # then it keeps the rule's memory
    keeps = experiment.batchnorm["name"] == "local" or experiment.semi.mode == "pseudo"
    return experiment.worker_momentum > 0 or watches or keeps
