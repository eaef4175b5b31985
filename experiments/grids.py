"""What carries a run's messages: this process, the workers of a Ray cluster, or Flower's engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.serverapp import Grid

from clients.client_app import make_app
from clients.modes import handlers_for
from clients.node import Host
from fedrobust import plugins
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower import InProcessGrid
from fedrobust.plugins import Part
from fedrobust.spec import suggest


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which Ray cluster is used, and how much of it.

    Attributes
    ----------
    address
        "local": a Ray of the run's own; see ``experiments.cluster.connection`` for the others.
    workers
        How many; 0: one a core, or one a GPU, of the whole cluster.
    """

    address: str = "local"
    workers: int = 0


@contextmanager
def in_process(
    experiment: Experiment, host: Host, parts: Sequence[Part], cluster: Cluster
) -> Iterator[Grid]:
    """Hold the clients in this process."""
    # Not the client app of ``clients.client_app``: that one keeps its nodes in the process.
    own = handlers_for(experiment, host)  # this run's: nothing is shared with another one
    app = make_app(lambda context: own)
    yield InProcessGrid(app, clients=experiment.clients, together=own.together)


@contextmanager
def on_ray(
    experiment: Experiment, host: Host, parts: Sequence[Part], cluster: Cluster
) -> Iterator[Grid]:
    """Hold workers of ours on a Ray cluster, which serve the clients."""
    from experiments.cluster.connection import connected
    from experiments.cluster.grid import RayGrid
    from experiments.cluster.pool import pooled
    from experiments.cluster.worker import Plan, Worker

    root = str(Path(host.data_root).absolute()) if host.data_root else ""  # workers stand elsewhere
    plan = Plan(experiment, replace(host, data_root=root), plugins.used(), _written(parts))
    most, cuda = experiment.clients, host.device != "cpu"
    with (
        connected(cluster.address) as ray,
        pooled(ray, Worker, plan, workers=cluster.workers, most=most, cuda=cuda) as pool,
    ):
        yield RayGrid(ray, pool, clients=experiment.clients)


Carrier = Callable[[Experiment, Host, Sequence[Part], Cluster], AbstractContextManager[Grid]]
CARRIERS: dict[str, Carrier] = {"in_process": in_process, "ray": on_ray}
FLOWER = "flower"  # Flower's own engine leads such a run, in processes of its own
GRIDS = ("in_process", FLOWER, "ray")


def check_grid(grid: str) -> None:
    """Refuse an unknown grid.

    Raises
    ------
    ConfigError
        With what is allowed.
    """
    if grid not in GRIDS:
        raise ConfigError([f"unknown grid {grid!r}; {suggest(grid, list(GRIDS))}"])


def servers_device(device: str, grid: str) -> str:
    """Return where the server computes: its machine need not have the GPUs of its cluster."""
    return "cpu" if grid == "ray" and not torch.cuda.is_available() else device


def _written(parts: Sequence[Part]) -> bytes:
    """Return a user's objects as bytes."""
    if not parts:
        return b""
    with tempfile.TemporaryDirectory(prefix="fedrobust-parts-") as folder:
        file = Path(folder) / "parts"
        plugins.write_parts(file, parts)
        return file.read_bytes()
