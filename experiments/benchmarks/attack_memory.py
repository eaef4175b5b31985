"""How many (n, d) matrices of updates a run's memory rises by, without an attack and under each.

``python -m experiments.benchmarks.attack_memory`` prints one JSON line per case: what the process
grows by at its peak over the float32 matrix of all n updates. ``--every`` measures each attack of
the table in the place of the usual choice.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from typing import Any

import torch

from clients.client_app import make_app
from clients.modes import federated
from clients.node import Host, make_node
from experiments.benchmarks.measuring import Row, peak_of
from experiments.simulation import quiet
from fedrobust.attacks.tables import ATTACK_RECORDS
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import InProcessGrid
from strategies.session import run

GOAL = 1.2
USUAL: tuple[tuple[str, Any, str], ...] = (
    ("none", "none", "mean"),
    ("alie, omniscient", {"name": "alie", "knowledge": "omniscient"}, "mean"),
    ("alie, colluding", "alie", "mean"),
    ("alie, omniscient, against krum", {"name": "alie", "knowledge": "omniscient"}, "krum"),
    ("drift_search against the median", "drift_search", "median"),
    ("opt_alie against krum", {"name": "opt_alie", "evaluations": 3}, "krum"),
    ("fang", "fang", "trimmed_mean"),
    ("nan_value", "nan_value", "median"),
)


def experiment(attack: Any, rule: str, given: argparse.Namespace, rounds: int) -> Experiment:
    """Describe one case: a fifth of the clients attacks."""
    attacked = attack != "none"
    return from_dict(
        {
            "data": "fashionmnist-sample",
            "model": given.model,
            "clients": given.clients,
            "byzantine": given.clients // 5 if attacked else 0,
            "rounds": rounds,
            "seed": 1,
            "rule": rule,
            "attack": attack,
            "training": {"batch_size": 4},
            "server": {"lr": 0.05, "evaluate_every": 10**6},
        }
    )


def measured(case: str, attack: Any, rule: str, given: argparse.Namespace) -> Row:
    """Run a case and see how far the memory rises."""
    e = experiment(attack, rule, given, given.rounds)
    node = make_node(e, Host())
    own = federated(node)
    nodes = InProcessGrid(make_app(lambda context: own), clients=e.clients, together=own.together)
    gc.collect()
    with quiet("flwr"):
        peak = peak_of(lambda: run(nodes, e))
    matrix = 4 * e.clients * node.model.d
    found = None if peak is None else peak / matrix
    return {
        "case": case, "rule": rule, "clients": e.clients, "d": node.model.d,
        "matrix_bytes": matrix, "peak_bytes": peak, "matrices": found, "goal": GOAL,
    }  # fmt: skip


def cases(given: argparse.Namespace) -> Iterator[Row]:
    """Measure every case, after a small run that loads and compiles what all need."""
    chosen = USUAL
    if given.every:
        chosen = tuple((name, name, "median") for name in ATTACK_RECORDS)
    for case, attack, rule in chosen:
        warm = argparse.Namespace(**{**vars(given), "clients": 15, "model": "linear"})
        measured(case, attack, rule, warm)
        yield measured(case, attack, rule, given)


def main() -> None:
    """Print the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--model", default="wide_mlp")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--every", action="store_true", help="each attack of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for row in cases(given):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
