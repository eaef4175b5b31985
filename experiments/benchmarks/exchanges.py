"""What an exchange with real nodes costs: four SuperNodes, warm and in Flower's plain way.

``python -m experiments.benchmarks.exchanges`` starts a SuperLink and four nodes on loopback, with
TLS and keys, for each way, runs a federated and an Aspis experiment on them, and prints one JSON
line a case: seconds an exchange (one message to each node and its reply) and CPU seconds a message,
of all processes of the nodes together, and of the SuperLink's with its server app.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from experiments.deploy.federation import Federation, family, federation
from experiments.deployment import run_on_nodes
from fedrobust.experiment.load import from_dict

NODES = 4
TICK = os.sysconf("SC_CLK_TCK")  # a second of /proc's times
ASKED = "Receiving: "  # what a SuperNode logs for each message
BASE: dict[str, Any] = {
    "data": "fashionmnist-sample",
    "model": "mlp",
    "clients": NODES,
    "byzantine": 1,
    "seed": 1,
    "rule": "median",
    "attack": "none",
    "training": {"mode": "update", "epochs": 1, "lr": 0.05},
    "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 1000, "deadline": 240.0},
}
ASPIS: dict[str, Any] = {
    "training": {},
    "server": {"lr": 0.05, "momentum": 0.0, "evaluate_every": 1000, "deadline": 240.0},
    "redundancy": {"name": "aspis", "batch": 120, "replication": 3},
}
CASES = {"train": {}, "aspis": ASPIS}


def main(rounds: int = 5, ways: str = "plain,warm", cases: str = "train,aspis") -> None:
    """Measure each way and print the lines."""
    for way in ways.split(","):
        with (
            tempfile.TemporaryDirectory(prefix="fedrobust-exchanges-") as temporary,
            federation(Path(temporary), nodes=0, namespaces=False) as it,
        ):
            began = time.monotonic()
            start(it, way)
            ready = time.monotonic() - began
            for case in cases.split(","):
                line = {"way": way, "case": case, "ready_seconds": round(ready, 1)}
                typer.echo(json.dumps(line | measured(it, case, rounds)))


def start(it: Federation, way: str) -> None:
    """Register and start the nodes of one way."""
    it.warm = way == "warm"
    it.register_all(NODES)
    for number in range(NODES):
        it.start_node(number, {"partition-id": number, "role": "honest"})
    it.wait_for_nodes(NODES)


def measured(it: Federation, case: str, rounds: int) -> dict[str, Any]:
    """Run one case; return its seconds and CPU seconds, without the first round's."""
    # One more: the first is left out, in which Aspis also compares the workers' profiles.
    e = from_dict(BASE | CASES[case] | {"rounds": rounds + 1})
    marks: dict[int, tuple[int, float, float]] = {}
    before, began = mark(it)[0], time.monotonic()
    rows = run_on_nodes(
        e,
        superlink=it.address,
        output=it.home / "results",
        certificates=it.home / "ca.crt",
        on_row=lambda row: marks.update({row["round"]: mark(it)}),
    )
    whole = time.monotonic() - began
    asked, nodes, server = (b - a for a, b in zip(marks[1], marks[rounds + 1], strict=True))
    seconds = [row["seconds"] for row in rows[2:]]
    each = (mark(it)[0] - before) / NODES - 1  # without the roll call
    each /= rounds + 1
    return {
        "rounds": rounds,
        "replies": [row["replies"] for row in rows[1:]],
        "exchanges_a_round": round(each, 2),
        "seconds_a_round": round(statistics.median(seconds), 3),
        "seconds_an_exchange": round(statistics.median(seconds) / each, 3),
        "first_round": round(rows[1]["seconds"], 2),
        "whole_run": round(whole, 1),
        "node_cpu_a_message": round(nodes / asked, 3),
        "server_cpu_a_message": round(server / asked, 3),
        "load": round(os.getloadavg()[0], 1),
    }


def mark(it: Federation) -> tuple[int, float, float]:
    """Return the messages so far, and the CPU seconds of the nodes and of the server."""
    names = [name for name in it.processes if name.startswith("node-")]
    asked = sum(it.log(name).count(ASKED) for name in names)
    return asked, sum(cpu(it, name) for name in names), cpu(it, "superlink")


def cpu(it: Federation, name: str) -> float:
    """Return the CPU seconds of a process, its descendants, and those that have ended."""
    ticks = 0
    for pid in family(it.processes[name].pid):
        try:
            # After the last bracket: a program's name may hold blanks, and brackets.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile: its parent counts it
            continue
        ticks += sum(map(int, fields[11:15]))  # own and children's, in user mode and the kernel
    return ticks / TICK


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
