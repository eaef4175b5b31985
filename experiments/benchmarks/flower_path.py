"""What the way through Flower costs a client beyond its training: processor time by process.

``python -m experiments.benchmarks.flower_path --json`` prints one JSON line per case. A run goes
through ``flwr run`` with its own SuperLink; the processor seconds of the server, the hosts and
Flower's and Ray's other processes are read from ``/proc`` between two rounds, and the training
itself, measured as a bare loop in this process, is subtracted from the hosts'. Other work on the
machine makes a round longer, but hardly its processor time. Ways:

``hosts``  two hosts that train their clients as cohorts
``stock``  one node a client: what Flower does by itself, with the same strategy and client

``critical_ms`` is what a quiet machine with a core for each host would wait for: the hosts' share
divided by their number, and the server's. ``cpu_ms`` is all of it. ``round_s`` is wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch

from clients.node import Host, make_node
from experiments.benchmarks.engine import Settings, Stopwatch, experiment
from experiments.benchmarks.processes import WORKER, descendants
from experiments.flower_run import run_on_flower

Row = dict[str, Any]
KINDS = {WORKER: "hosts", "flwr-simulation": "server"}
OTHERS = "engine"  # Flower's and Ray's other processes
SAME_LOOK = 0.1  # seconds: rows are looked for every half second


class Processes:
    """Processor seconds of everything that this process has started, by kind, at each row."""

    def __init__(self) -> None:
        self._spent: dict[int, tuple[str, float]] = {}  # of those that have ended, too
        self.looks: list[tuple[int, dict[str, float]]] = []
        self._seen = 0.0

    def row(self, row: Row) -> None:
        """Note what was used when a round's row was seen; rows seen in one look are one."""
        for one, (kind, seconds) in spent().items():
            self._spent[one] = kind, max(seconds, self._spent.get(one, (kind, 0.0))[1])
        total = dict.fromkeys((*KINDS.values(), OTHERS), 0.0)
        for kind, seconds in self._spent.values():
            total[kind] += seconds
        number = int(row["round"])
        if self.looks and time.monotonic() - self._seen < SAME_LOOK:
            self.looks.pop()
        self.looks.append((number, total))
        self._seen = time.monotonic()

    def per_round(self, first: int) -> dict[str, float]:
        """Return processor seconds a round, from the first look at or after a round on.

        Without the last look: when it came the processes may have been gone.
        """
        (begin, start), *_, (end, stop) = [x for x in self.looks[:-1] if x[0] >= first]
        return {kind: (stop[kind] - start[kind]) / (end - begin) for kind in stop}


def spent() -> dict[int, tuple[str, float]]:
    """Return kind and processor seconds so far of all living descendants of this process."""
    found = descendants(os.getpid())
    return {one: (_kind(process.command), process.seconds) for one, process in found.items()}


def _kind(command: str) -> str:
    return next((kind for mark, kind in KINDS.items() if mark in command), OTHERS)


def measured(model: str, clients: int, way: str, settings: Settings, hosts: int) -> Row:
    """Run one case and return its line."""
    case = experiment(model, clients, settings)
    nodes = clients if way == "stock" else hosts
    watch = Processes()
    rows = run_on_flower(case, data_root=settings.data_root, hosts=nodes, on_row=watch.row,
                         stock=way == "stock")  # fmt: skip
    if lost := sum(clients - row["replies"] for row in rows[1:]):
        raise RuntimeError(f"{way} {model} N={clients}: {lost} replies lost")
    bare = Stopwatch(case, make_node(case, Host(data_root=settings.data_root or "")), settings)
    for number in range(1, 6):
        bare.bare_round(number)
    training = statistics.median(bare.bare)
    cpu = watch.per_round(2)
    beyond = cpu["hosts"] - training
    return {
        "case": f"{way} {model} d={bare.node.model.d} N={clients}",
        "round_s": statistics.median(row["seconds"] for row in rows[2:-1]),
        "training_cpu_s": training,
        **{f"{kind}_cpu_s": seconds for kind, seconds in cpu.items()},
        "cpu_ms": (sum(cpu.values()) - training) / clients * 1e3,
        "critical_ms": (beyond / min(hosts, 2) + cpu["server"]) / clients * 1e3,
    }


def main() -> None:
    """Print the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per case (always)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ways", nargs="+", default=["hosts", "stock"])
    parser.add_argument("--models", nargs="+", default=["mlp", "wide_mlp"])
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--data-root", default=os.environ.get("FEDROBUST_DATA"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(given.rounds, "cpu", "cpu", given.data_root)
    for way in given.ways:
        for model in given.models:
            line = measured(model, given.clients, way, settings, given.hosts)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
