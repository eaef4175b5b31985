"""Kill Ray workers with SIGKILL at random points of a run, and compare it with one in one process.

``python -m experiments.benchmarks.ray_kills --runs 10`` prints one JSON line a case. Each run has
two workers; one or both are killed after random times, and started again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import typer

from clients.node import Host
from experiments.benchmarks.kills import Different
from experiments.cluster.connection import connected
from experiments.cluster.grid import RayGrid
from experiments.cluster.pool import Pool, pooled
from experiments.cluster.worker import Plan, Worker
from experiments.simulation import quiet, run_one
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import timeless
from strategies.session import run

Row = dict[str, Any]
BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "clients": 24,
    "byzantine": 4,
    "rounds": 12,
    "seed": 5,
    "rule": "nnm+trimmed_mean",
    "attack": {"name": "alie", "knowledge": "omniscient"},
    "training": {"mode": "update", "steps": 20, "batch_size": 16, "lr": 0.05},
    "server": {"lr": 0.5, "evaluate_every": 3},
}
CASES: dict[str, dict[str, Any]] = {
    "local steps, omniscient ALIE": {},
    "worker momentum": {"worker_momentum": 0.9, "training": {"batch_size": 64}},
}


class Killer(threading.Thread):
    """Kills one of the first workers after each of some delays, each at most once."""

    def __init__(self, pool: Pool, ray: Any, delays: list[float], source: random.Random) -> None:
        super().__init__(daemon=True)
        self._processes = {n: ray.get(pool.actor(n).process.remote()) for n in pool.numbers()}
        self._delays, self._source = delays, source
        self.struck = 0

    def run(self) -> None:
        """Strike."""
        chosen = self._source.sample(sorted(self._processes), len(self._delays))
        for delay, slot in zip(self._delays, chosen, strict=True):
            time.sleep(delay)
            with suppress(ProcessLookupError):
                os.kill(self._processes[slot], signal.SIGKILL)
                self.struck += 1


def struck(
    ray: Any, experiment: Experiment, source: random.Random, length: float
) -> tuple[list[Row], int, float]:
    """Run once, kill one or both workers; return the rows, how many were killed, the seconds.

    ``length`` is what an undisturbed run takes; 0 kills nobody.
    """
    rows: list[Row] = []
    with pooled(ray, Worker, Plan(experiment, Host()), workers=2, most=2, cuda=False) as pool:
        strikes = source.choice([1, 2]) if length else 0
        delays = [source.uniform(0, length / 2) for _ in range(strikes)]
        killer = Killer(pool, ray, delays, source)
        began = time.monotonic()
        killer.start()
        run(RayGrid(ray, pool, clients=experiment.clients), experiment, on_row=rows.append)
        seconds = time.monotonic() - began
        killer.join()
    return timeless(rows), killer.struck, seconds


def campaign(ray: Any, case: str, *, runs: int, seed: int) -> Row:
    """Run one case so often; return what was seen.

    Raises
    ------
    Different
        If a run's rows are not those of the run in one process.
    """
    experiment = from_dict(BASE | CASES[case])
    expected, source = timeless(run_one(experiment)), random.Random(f"{seed}/{case}")
    undisturbed, _, length = struck(ray, experiment, source, 0.0)
    kills, seen = 0, [undisturbed]
    for _ in range(runs):
        rows, count, _ = struck(ray, experiment, source, length)
        kills, seen = kills + count, [*seen, rows]
    if wrong := [number for number, rows in enumerate(seen) if rows != expected]:
        raise Different(f"{case}: runs {wrong}, the first of which is undisturbed")
    return {"case": case, "kills": kills, "runs": runs, "seconds": round(length, 2), "different": 0}


def main(runs: int = 5, seed: int = 0, case: list[str] | None = None) -> None:
    """Kill workers of every case and print what was seen."""
    with connected() as ray, quiet("flwr"):
        for name in case or CASES:
            typer.echo(json.dumps(campaign(ray, name, runs=runs, seed=seed)))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
