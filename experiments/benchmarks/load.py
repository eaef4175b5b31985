"""Load: many logical clients over real node processes, TLS and keys included, on one machine.

``python -m experiments.benchmarks.load`` prints one JSON line: rounds a minute, the server's peak
memory, and how many replies were lost (none, or exit code 1).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Self

import typer

from experiments.deploy.federation import Federation, family, federation
from experiments.deployment import run_on_nodes
from fedrobust.experiment.load import from_dict

WIDE = {  # 2.3 million parameters
    "data": "fashionmnist-sample",
    "model": "mobilenet_v2",
    "byzantine": 0,
    "seed": 1,
    "rule": "mean",
    "attack": "none",
    "training": {"batch_size": 8},
    "server": {"lr": 0.05, "evaluate_every": 1000, "deadline": 900.0},
}


def main(clients: int = 100, hosts: int = 2, rounds: int = 3, model: str = "") -> None:
    """Run a few rounds and measure them."""
    changes = {"clients": clients, "rounds": rounds} | ({"model": model} if model else {})
    experiment = from_dict(WIDE | changes)
    with tempfile.TemporaryDirectory(prefix="fedrobust-load-") as temporary:
        home = Path(temporary)
        with federation(home, nodes=0, namespaces=False) as it:
            for number in range(hosts):
                it.register(number)
                it.start_node(number, {"partition-id": number})
            it.wait_for_nodes(hosts)
            with Memory(it) as memory:
                rows = run_on_nodes(
                    experiment,
                    superlink=it.address,
                    output=home / "results",
                    certificates=home / "ca.crt",
                    hosts=hosts,
                )
    seconds = [row["seconds"] for row in rows[1:]]
    lost = sum(clients - row["replies"] for row in rows[1:])
    line = {
        "case": f"{clients} clients on {hosts} nodes, {experiment.model}",
        "seconds": round(sum(seconds) / len(seconds), 1),
        "reference": None,
        "reference_seconds": None,
        "ratio": None,
        "goal": None,
        "rounds_per_minute": round(60 * len(seconds) / sum(seconds), 2),
        "peak_bytes": memory.peak,
        "lost": lost,
        "reasons": sorted({entry["reason"] for row in rows[1:] for entry in row["rejected"]}),
    }
    typer.echo(json.dumps(line))
    raise typer.Exit(1 if lost else 0)


class Memory(threading.Thread):
    """Follow, in a block, the resident memory of the SuperLink and of its server app."""

    def __init__(self, it: Federation) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._over = threading.Event()
        self._superlink = it.processes["superlink"].pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(1):
            pids = ",".join(map(str, family(self._superlink)))
            words = ["ps", "-o", "rss=", "-p", pids]
            told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            # ``ps`` tells KiB; several processes of one memory count it several times.
            self.peak = max(self.peak, 1024 * sum(map(int, told.split())))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
