"""Simulated time around a run: who is late or gone is not heard, and the rows say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from fedrobust import data
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import StragglerGrid
from fedrobust.simulation import stragglers

Row = dict[str, Any]


def in_time(
    grid: Grid,
    experiment: Experiment,
    clients: Mapping[int, int],
    labels: Tensor,
    members: Callable[[int], Iterable[int]],
    on_row: Callable[[Row], None],
) -> tuple[Grid, Callable[[Row], None]]:
    """Return the grid and the rows' receiver with simulated time; as they are without it.

    Parameters
    ----------
    labels
        The training set's: how many images each client holds decides how long it takes.
    members
        Round -> the Byzantine clients, which always answer in time.
    """
    if not stragglers.simulates_time(experiment):
        return grid, on_row
    n, seed = experiment.clients, experiment.seed
    sizes = [len(s) for s in data.partition(labels, experiment.partition, clients=n, seed=seed)]
    groups = stragglers.assign(experiment)

    def timing(round: int) -> stragglers.Timing:
        return stragglers.timing(experiment, groups, sizes, round=round, spared=members(round))

    timed = StragglerGrid(grid, clients=clients, timing=timing)
    return timed, lambda row: on_row(row | timed.row(row["round"]))
