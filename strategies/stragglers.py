"""Simulated time around a run: who is late or gone is not heard, and the rows say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flwr.serverapp import Grid

from fedrobust import data
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import StragglerGrid
from fedrobust.simulation import stragglers
from strategies.base import Row


def in_time(
    grid: Grid,
    experiment: Experiment,
    clients: Mapping[int, int],
    dataset: data.Dataset,
    members: Callable[[int], Iterable[int]],
) -> tuple[Grid, Callable[[int], Row]]:
    """Return the grid with simulated time, and what a round's row says of it.

    Where the experiment simulates no time the grid is as it was, and rows say nothing.

    Parameters
    ----------
    dataset
        How many of its training images each client holds decides how long it takes.
    members
        Round -> the Byzantine clients, which always answer in time.
    """
    if not stragglers.simulates_time(experiment):
        return grid, lambda server_round: {}
    n, seed = experiment.clients, experiment.seed
    sizes = [len(s) for s in data.cut(dataset, experiment.partition, clients=n, seed=seed)]
    groups = stragglers.assign(experiment)

    def timing(server_round: int) -> stragglers.Timing:
        spared = members(server_round)
        return stragglers.timing(experiment, groups, sizes, round=server_round, spared=spared)

    timed = StragglerGrid(grid, clients=clients, timing=timing)
    return timed, timed.row
