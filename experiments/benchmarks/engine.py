"""Round time of the in-process engine over the bare training loop of the same work.

``python -m experiments.benchmarks.engine --json`` prints one JSON line per case. The reference
trains the same clients on the same batches in a plain loop and averages; rounds of both alternate,
and the medians are compared. ``peak_bytes`` is this process's high-water mark so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from clients.client_app import app
from clients.workshop import open_workshop
from experiments.simulation import quiet
from fedrobust.config import Experiment
from fedrobust.flower import InProcessGrid
from fedrobust.seeds import generator
from fedrobust.training import train_local
from strategies.session import run

GOAL = 1.10
MODELS = ("mlp", "cnn")
CLIENTS = (20, 100, 300)


def experiment(model: str, clients: int, rounds: int) -> Experiment:
    """Describe one case: IID sample, one gradient of 32 images a client and round, mean."""
    return Experiment.from_dict(
        {
            "data": "fashionmnist-sample",
            "model": model,
            "clients": clients,
            "byzantine": 0,
            "rounds": rounds,
            "seed": 1,
            "rule": "mean",
            "attack": "none",
            "server": {"lr": 0.05, "evaluate_every": 10**6},
        }
    )


class Stopwatch:
    """Alternate one engine round with one bare round, and time both."""

    def __init__(self, case: Experiment, run_config: dict[str, Any]) -> None:
        self.workshop = open_workshop(run_config)
        self.case = case
        self.vector = self.workshop.model.vector.clone()
        self.bare: list[float] = []
        self.engine: list[float] = []

    def row(self, row: dict[str, Any]) -> None:
        """Take an engine round's own time, then run the bare round beside it."""
        if row["round"] == 0:
            return
        if row["round"] < self.case.rounds:  # the last round evaluates as well
            self.engine.append(row["seconds"])
        start = time.perf_counter()
        self._bare_round(row["round"])
        self.bare.append(time.perf_counter() - start)

    def _bare_round(self, number: int) -> None:
        total = torch.zeros_like(self.vector)
        for client in range(self.case.clients):
            source = generator(self.case.seed, "batches", round=number, client=client)
            images, labels = self.workshop.share(client)
            update, _ = train_local(
                self.workshop.model,
                self.vector,
                images,
                labels,
                self.case.training,
                generator=source,
            )
            total += update
        self.vector = self.vector - self.case.server.lr * total / self.case.clients


def measure(model: str, clients: int, rounds: int) -> dict[str, Any]:
    """Measure one case."""
    case = experiment(model, clients, rounds)
    run_config = {"experiment": case.to_toml()}
    watch = Stopwatch(case, run_config)
    with quiet("flwr"):
        grid = InProcessGrid(app, clients=clients, run_config=run_config)
        run(grid, case, on_row=watch.row)
    seconds, reference = statistics.median(watch.engine[1:]), statistics.median(watch.bare[1:])
    return {
        "case": f"in-process {model} d={watch.workshop.model.d} N={clients}",
        "seconds": seconds,
        "reference": "bare training loop",
        "reference_seconds": reference,
        "ratio": seconds / reference,
        "goal": GOAL,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "overhead_ms_per_client": (seconds - reference) / clients * 1e3,
        "clients_per_second": clients / seconds,
    }


def cases(rounds: int) -> Iterator[dict[str, Any]]:
    """Measure every case."""
    for model in MODELS:
        for clients in CLIENTS:
            yield measure(model, clients, rounds)


def main() -> None:
    """Print the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON line per case (always)")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in cases(arguments.rounds):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
