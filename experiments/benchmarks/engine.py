"""Round time over the bare training loop of the same work, for each way to carry the messages.

``python -m experiments.benchmarks.engine --json`` prints one JSON line per case, and one per grid
and model with the exponent of growth in N. The reference trains the same clients on the same
batches in a plain loop and averages; in process, rounds of both alternate and medians are compared.
Through Flower the reference is the same loop on one core. Grids:

``in_process``  every client in this process, one by one (training.cohort = "off")
``stacked``     the same with training.cohort = "vmap"
``cohorts``     Flower's simulation on Ray, two hosts that train their clients as cohorts
``stock``       Flower's simulation on Ray, one node a client: what Flower does by itself
``attacked``    as ``in_process``, a fifth of the clients omniscient ALIE: the bare loop trains the
                honest ones alone

``user_mlp`` and ``user_cnn`` are the built-in networks as a user writes and hands them over;
``user_gate`` branches on values: the grid ``stacked`` says why it cannot be stacked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from clients.client_app import make_app
from clients.modes import federated
from clients.node import Host, Node, make_node
from experiments.benchmarks.measuring import Row, peak_of, settle
from experiments.benchmarks.user_models import USER_MODELS
from experiments.flower_run import run_on_flower
from experiments.simulation import quiet
from fedrobust import plugins
from fedrobust.attacks import threat_model
from fedrobust.cohort import unstackable
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import InProcessGrid
from fedrobust.plugins import Part
from fedrobust.seeds import generator
from fedrobust.training import one_thread, train_local
from strategies.session import run

GOALS = {"in_process": 1.10, "stacked": 1.10, "cohorts": 1.35, "stock": None,
         "attacked": 1.25}  # fmt: skip
GROWTH_GOAL = 1.05
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
DATA = {
    "mlp": "fashionmnist",
    "cnn": "fashionmnist",
    "wide_mlp": "fashionmnist",
    "alie_cnn": "cifar10",
    **dict.fromkeys(USER_MODELS, "fashionmnist"),
}
PARTS = [Part("model", name, made, "the benchmark") for name, made in USER_MODELS.items()]


@dataclass(frozen=True)
class Settings:
    """How to measure: see ``main``."""

    rounds: int
    device: str
    clock: str
    data_root: str | None


def experiment(
    model: str, clients: int, settings: Settings, cohort: str = "off", *, attacked: bool = False
) -> Experiment:
    """Describe one case: IID, one gradient of 32 images a client and round, mean."""
    sample = settings.data_root is None
    alie = {"name": "alie", "knowledge": "omniscient"}
    return from_dict(
        {
            "data": "fashionmnist-sample" if sample else DATA[model],
            "model": model,
            "clients": clients,
            "byzantine": clients // 5 if attacked else 0,
            "rounds": settings.rounds,
            "seed": 1,
            "rule": "mean",
            "attack": alie if attacked else "none",
            "training": {"cohort": cohort},
            "server": {"lr": 0.05, "evaluate_every": 10**6},
        }
    )


class Stopwatch:
    """Alternate one engine round with one bare round, and time both."""

    def __init__(self, case: Experiment, node: Node, settings: Settings) -> None:
        self.node = node
        self.case = case
        self.clock = CLOCKS[settings.clock]
        self.device = settings.device
        self.vector = self.node.model.vector.clone()
        self.bare: list[float] = []
        self.engine: list[float] = []
        self.mark = 0.0

    def row(self, row: Row) -> None:
        """Take the time since the last bare round, then run the next one."""
        settle(self.device)
        now = self.clock()
        if 1 < row["round"] < self.case.rounds:  # the first warms up, the last evaluates as well
            self.engine.append(now - self.mark)
        self.bare_round(row["round"])
        self.mark = self.clock()

    def _honest(self, number: int) -> list[int]:
        """Return who trains in a round: crafted updates cost no training."""
        bad = threat_model.members(self.case, round=number)
        return [client for client in range(self.case.clients) if client not in bad]

    def bare_round(self, number: int) -> None:
        """Train every client in a plain loop and step."""
        start = self.clock()
        total = torch.zeros_like(self.vector)
        with one_thread():
            for client in self._honest(number):
                images, labels = self.node.share(client)
                source = generator(self.case.seed, "batches", round=number, client=client)
                update, _ = train_local(
                    self.node.model,
                    self.vector,
                    images,
                    labels,
                    self.case.training,
                    generator=source,
                )
                total += update
        self.vector = self.vector - self.case.server.lr * total / self.case.clients
        settle(self.device)
        # The first warms up, here as in the engine.
        if number > 1:
            self.bare.append(self.clock() - start)


def in_process(model: str, clients: int, settings: Settings, grid: str) -> Row:
    """Measure the engine in this process."""
    cohort = "vmap" if grid == "stacked" else "off"
    case = experiment(model, clients, settings, cohort, attacked=grid == "attacked")
    root = settings.data_root
    node = make_node(case, Host(data_root=root or "", device=settings.device))
    few = (part[:2] for part in node.share(0))
    if grid == "stacked" and (reason := unstackable(node.model, node.loss, *few)):
        return {"case": f"{grid} {model} d={node.model.d} N={clients}", "alone": reason}
    watch, own = Stopwatch(case, node, settings), federated(node)
    nodes = InProcessGrid(make_app(lambda context: own), clients=clients, together=own.together)
    with quiet("flwr"):
        peak = peak_of(
            lambda: run(nodes, case, data_root=root, device=settings.device, on_row=watch.row),
            device=settings.device,
        )
    return _line(grid, watch, watch.engine, peak)


def through_flower(model: str, clients: int, settings: Settings, grid: str) -> Row:
    """Measure Flower's own engine on Ray; its processes' memory is not seen from here."""
    case = experiment(model, clients, settings)
    root = settings.data_root
    hosts = clients if grid == "stock" else 2
    rows = run_on_flower(case, data_root=root, hosts=hosts, parts=PARTS, stock=grid == "stock")
    if lost := sum(clients - row["replies"] for row in rows[1:]):
        raise RuntimeError(
            f"{grid} {model} N={clients}: {lost} replies lost, the rounds say nothing"
        )
    watch = Stopwatch(case, make_node(case, Host(data_root=root or "")), settings)
    for number in range(1, 5):
        watch.bare_round(number)
    # Without the rounds that start the processes, and the last, which evaluates as well.
    return _line(grid, watch, [row["seconds"] for row in rows[2:-1]], None)


def _line(grid: str, watch: Stopwatch, rounds: list[float], peak: int | None) -> Row:
    clients, d = watch.case.clients, watch.node.model.d
    seconds, reference = statistics.median(rounds), statistics.median(watch.bare)
    return {
        "case": f"{grid} {watch.case.model} d={d} N={clients}",
        "seconds": seconds,
        "reference": "bare training loop",
        "reference_seconds": reference,
        "ratio": seconds / reference,
        "goal": GOALS[grid],
        "peak_bytes": peak,
        "overhead_ms_per_client": (seconds - reference) / clients * 1e3,
        "clients_per_second": clients / seconds,
    }


MEASURES = {
    "in_process": in_process,
    "stacked": in_process,
    "attacked": in_process,
    "cohorts": through_flower,
    "stock": through_flower,
}


def growth(found: dict[int, Row]) -> float:
    """Return the exponent p of seconds ~ N^p, by least squares over the logarithms."""
    x = [math.log(n) for n in found]
    y = [math.log(row["seconds"]) for row in found.values()]
    return statistics.linear_regression(x, y).slope


def cases(
    grids: list[str], models: list[str], clients: list[int], settings: Settings
) -> Iterator[Row]:
    """Measure every case; one node a client only where that ends in reasonable time."""
    for grid in grids:
        for model in models:
            found: dict[int, Row] = {}
            for n in clients:
                if grid == "stock" and n > 100:
                    continue
                line = MEASURES[grid](model, n, settings, grid)
                if "seconds" in line:
                    found[n] = line
                yield line
            if len(found) > 1:
                yield {
                    "case": f"{grid} {model} growth",
                    "exponent": growth(found),
                    "goal": GROWTH_GOAL,
                }


def main() -> None:
    """Print the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per case (always)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu", help="cuda: in process on a GPU")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: in process only")
    parser.add_argument("--grids", nargs="+", default=list(MEASURES), choices=MEASURES)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["mlp", "user_mlp", "cnn", "user_cnn", "wide_mlp", "user_gate"],
        choices=DATA,
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[20, 100, 300, 1000])
    parser.add_argument("--data-root", default=os.environ.get("FEDROBUST_DATA"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(given.rounds, given.device, given.clock, given.data_root)
    with ExitStack() as stack:
        for part in PARTS:
            stack.enter_context(plugins.installed(part))
        for case in cases(given.grids, given.models, given.clients, settings):
            print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
