"""Votes over real node processes beside the same votes in one process: bit for bit.

``python -m experiments.benchmarks.votes`` trains an ensemble of different models on nodes with TLS
and keys, one of them Byzantine, asks all of them about 1,000 images, and prints one JSON line. Exit
code 1 if anything differs from the run in process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import typer
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from clients.client_app import app as client_app
from experiments.deploy.federation import as_json, federation
from experiments.deployment import run_on_nodes
from experiments.simulation import quiet
from fedrobust import data
from fedrobust.ensemble import combine
from fedrobust.evaluation import pixels
from fedrobust.experiment.load import from_dict, from_run_config
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import GuardedGrid, InProcessGrid
from fedrobust.runs import checkpoint
from fedrobust.runs.folder import timeless
from strategies import server_app
from strategies.ensemble.query import ask
from strategies.handshake import registered
from strategies.session import run

MALICIOUS = 3
IMAGES = 1000
VOTES = {"probabilities": ("soft", "hard", "weighted"), "logits": ("mean_logit",), "labels": ()}
ENSEMBLE = {
    "data": "fashionmnist-sample",
    "model": "mlp",
    "clients": 4,
    "byzantine": 1,
    "placement": {"name": "fixed", "ids": [MALICIOUS]},
    "rounds": 2,
    "seed": 4,
    "rule": "median",
    "attack": "flip",
    "ensemble": {
        "paradigm": "architecture",
        "architectures": ["linear", "mlp", "small_wide"],
        "votes": ["soft", "hard", "weighted", "robust"],
        "train_images": 2000,
        "test_images": IMAGES,
        "query_images": IMAGES,
    },
    "server": {"evaluate_every": 2, "deadline": 240.0},
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment as the server app does; then ask its members in every way."""
    server_app.main(grid, context)
    experiment = from_run_config(context.run_config)
    # In the same run of Flower's: a node's state, and with it its member's model, belongs to one
    # run.
    found = asked(GuardedGrid(grid), registered(grid), experiment)
    checkpoint.save(Path(str(context.run_config["output"])) / "answers.npz", found)


def asked(grid: Grid, clients: Mapping[int, int], experiment: Experiment) -> dict[str, Tensor]:
    """Return what the members answer about the first test images, by the kind of answer."""
    images = pixels(data.load(experiment.data).test_images[:IMAGES])
    found = {}
    for what in VOTES:
        heard = ask(grid, clients, images, name=what, what=what, batch_size=IMAGES)
        if heard.missing:
            raise RuntimeError(f"no answer: {heard.missing}")
        found[what] = heard.answers
    return found


def here(experiment: Experiment) -> tuple[list[dict], dict[str, Tensor]]:
    """Return the rows and the answers of the run in process."""
    rows: list[dict] = []
    config = {"experiment": experiment.to_toml(), "data-root": ""}
    grid = InProcessGrid(client_app, clients=experiment.clients, run_config=config)
    with quiet("flwr"):
        run(grid, experiment, on_row=rows.append)
        clients = {node: node - 1 for node in grid.get_node_ids()}
        return rows, asked(grid, clients, experiment)


def there(experiment: Experiment, home: Path) -> tuple[list[dict], dict[str, Tensor]]:
    """Return the rows and the answers of the run on nodes."""
    with federation(home, nodes=experiment.clients, namespaces=False) as it:
        for number in range(experiment.clients):
            it.register(number)
            role = "malicious" if number == MALICIOUS else "honest"
            it.start_node(number, {"partition-id": number, "role": role})
        it.wait_for_nodes(experiment.clients)
        rows = run_on_nodes(
            experiment,
            superlink=it.address,
            output=home / "results",
            certificates=home / "ca.crt",
            server="experiments.benchmarks.votes:app",
        )
        return rows, checkpoint.load(home / "results" / "answers.npz")


def compare(rounds: int = 2) -> None:
    """Run the ensemble twice and compare rows, answers and votes."""
    experiment = from_dict(ENSEMBLE | {"rounds": rounds})
    expected, own = here(experiment)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedrobust-votes-") as temporary:
        rows, answers = there(experiment, Path(temporary))
    equal = {"rows": timeless(rows) == timeless(expected)}
    equal |= {f"answers: {what}": torch.equal(answers[what], own[what]) for what in own}
    equal |= {
        f"vote: {vote}": torch.equal(combine(answers[what], vote), combine(own[what], vote))
        for what, votes in VOTES.items()
        for vote in votes
    }
    line = {
        "equal": equal,
        "images": len(own["labels"][0]),
        "members": len(own["labels"]),
        "accuracy": rows[-1].get("clean"),
        "seconds": round(time.monotonic() - began),
    }
    typer.echo(as_json(line))
    raise typer.Exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    command = typer.Typer(pretty_exceptions_enable=False)
    command.command()(compare)
    command()
