"""One run of one experiment over any grid: roll call, mode, rounds, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrobust import data
from fedrobust import secret as hidden
from fedrobust.experiment.schema import Experiment
from fedrobust.simulation import stragglers
from fedrobust.text import printables
from fedrobust.training import one_thread
from strategies.base import Row
from strategies.checkpointing import Checkpoints, keep, resume
from strategies.evaluation import Metrics, evaluated
from strategies.handshake import await_clients
from strategies.modes import Mode, Setup, build
from strategies.rounds import rounds


@one_thread()  # what ran before in the process has no say in the sums of a run
def run(
    grid: Grid,
    experiment: Experiment,
    *,
    data_root: str | None = None,
    device: str = "cpu",
    attacks: Path | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stock: Strategy | None = None,
    checkpoints: Checkpoints | None = None,
    secret: int | None = None,
) -> ArrayRecord:
    """Run one experiment over a grid whose nodes are its clients.

    Parameters
    ----------
    grid
        One node a client; nodes answer "hello" and "train".
    experiment
        What to run.
    data_root
        Where the full data sets are.
    device
        Where the server's model and test images live: the clients' device, in one process.
    attacks
        Where images of a transfer attack are, or shall be; None: they are made and not kept.
    on_row
        Called with round 0 (the initial model) and with each round as it ends.
    stock
        A Flower strategy that leads the run in the place of ours.
    checkpoints
        Where the state after a round goes, and the one to continue from.
    secret
        What the server's draws follow from (``fedrobust.secret``). None takes the experiment's
        seed, which every node is told: for simulation.

    Returns
    -------
    The final global model, one array ``model`` of shape (d,); empty for an ensemble, which has no
    global model.

    Raises
    ------
    CheckpointError
        If the run cannot continue from the checkpoint that it was given.
    """
    wall = stragglers.wall(experiment)
    n, least = experiment.clients, experiment.clients - experiment.byzantine
    dataset = data.set_aside(
        data.load(experiment.data, root=data_root),
        experiment.server.validation,
        seed=experiment.seed,
    )
    # Not all n: f nodes that claim to speak another protocol must not keep the run from starting.
    clients = await_clients(grid, expected=n, needed=least, deadline=wall)
    saved = None if checkpoints is None else checkpoints.saved
    setup = Setup(
        grid=grid,
        experiment=experiment,
        dataset=dataset,
        clients=clients,
        device=device,
        attacks=attacks,
        stock=stock,
        secret=hidden.settled(secret, saved, seed=experiment.seed),
    )
    mode = build(setup)
    after, arrays = resume(checkpoints, mode, experiment)
    started = time.perf_counter()
    steps = rounds(mode.strategy, mode.grid, arrays, last=experiment.rounds, timeout=wall,
                   after=after)  # fmt: skip
    for server_round, arrays in steps:
        metrics = _measured(mode, experiment, server_round, arrays)
        if server_round >= mode.strategy.first_row:
            row = _merged(mode.strategy.row, metrics)
            seconds = {"seconds": round(time.perf_counter() - started, 4)}
            # The row first: a checkpoint without its row is refused, a row without one is dropped.
            on_row(printables({**row, **seconds, **mode.notes(server_round)}))
            keep(checkpoints, mode, server_round, arrays, setup)
        # Only now: writing the row and the checkpoint is no part of any round's seconds.
        started = time.perf_counter()
    return arrays


def _measured(
    mode: Mode, experiment: Experiment, server_round: int, arrays: ArrayRecord
) -> Metrics:
    """Evaluate every so many rounds, and after the last one."""
    if not experiment.evaluates(server_round):
        return {}
    if server_round < mode.strategy.first_row:
        return {}
    return evaluated(mode.evaluators, server_round, mode.load(arrays))


def _merged(row: Row, metrics: Metrics) -> Row:
    """Put the evaluation into a round's row; who failed in either is named once, by client."""
    if "rejected" not in metrics:
        return row | metrics
    failed = [*row.get("rejected", []), *metrics["rejected"]]
    # Backwards, so that a client's first reason stays: training comes before the evaluation.
    named = {entry["client"]: entry for entry in reversed(failed)}
    return row | metrics | {"rejected": [named[client] for client in sorted(named)]}
