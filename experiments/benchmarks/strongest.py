"""None, the best published attack, and ``auto``, against 12 defences with and without NNM.

    python -m experiments.benchmarks.strongest --output DIR --seeds 1 --data-root FOLDER

n = 20, f = 4 (or ``--clients 51 --byzantine 12``), Dirichlet 1, FashionMNIST, ``pooled_mlp``,
gradient mode, no server momentum, worker momentum 0.9 and 0; ``--federation`` takes another
federation. Each has a folder of its own. Finished runs are not run again, so that seeds may be
added later; ``--table`` prints what is finished in the folder and runs nothing. The members were
frozen before the first of these cells was run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.strongest_table import document, found, table
from experiments.sweep import Sweep
from fedrobust.experiment.load import expand
from fedrobust.experiment.schema import Experiment

BASE: dict[str, Any] = {
    "data": "fashionmnist",
    "model": "pooled_mlp",
    "clients": 20,
    "byzantine": 4,
    "rounds": 80,
    "seed": 1,
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "training": {"mode": "gradient", "batch_size": 32},
    "server": {"lr": 0.2, "momentum": 0.0, "evaluate_every": 8},
}
RULES: tuple[dict[str, Any], ...] = (
    {"name": "trimmed_mean"},
    {"name": "krum"},
    {"name": "geometric_median"},
    {"name": "median"},
    {"name": "centered_clipping", "tau": 1.0, "iterations": 3},
    {"name": "multi_krum"},
    {"name": "cge"},
    {"name": "bulyan"},
    {"name": "caf"},
    {"name": "meamed"},
    {"name": "mean"},
    {"name": "dnc"},
)
MOMENTA = (0.9, 0.0)
# What differs from BASE. With momentum at the server a tenth of the step: it sums ten of them.
FEDERATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "iid": {"partition": {"name": "iid"}},
    "server": {"server": {"lr": 0.02, "momentum": 0.9, "evaluate_every": 8}},
    "cifar": {
        "data": "cifar10",
        "model": "tiny_cnn",
        "rounds": 200,
        "server": {"lr": 0.1, "momentum": 0.0, "evaluate_every": 20},
    },
}


@dataclass(frozen=True)
class Which:
    """Which cells: a federation of ``FEDERATIONS``, its size, some rules and worker momenta."""

    federation: str = "plain"
    clients: int = 20
    byzantine: int = 4
    rules: tuple[dict[str, Any], ...] = RULES
    momenta: tuple[float, ...] = MOMENTA


def cells(seeds: Iterable[int], which: Which = Which()) -> list[Experiment]:
    """Return every run, seed by seed, so that a part of them is a whole table of fewer seeds."""
    base = BASE | {"clients": which.clients, "byzantine": which.byzantine}
    return [
        run
        for seed in seeds
        for rule in which.rules
        for momentum in which.momenta
        for prefix in ("", "nnm+")
        for run in expand(
            base
            | FEDERATIONS[which.federation]
            | {
                "seed": seed,
                "worker_momentum": momentum,
                "rule": rule | {"name": prefix + rule["name"]},
                "sweep": {"attack": ["none", "auto"]},
            }
        )
    ]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/adversary"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data-root")
    parser.add_argument("--federation", choices=FEDERATIONS, default="plain")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--byzantine", type=int, default=4)
    parser.add_argument("--rules", nargs="+", choices=[rule["name"] for rule in RULES])
    parser.add_argument("--momenta", type=float, nargs="+", default=MOMENTA)
    parser.add_argument("--table", action="store_true", help="of what is finished; run nothing")
    parser.add_argument("--json", type=Path, help="write the cells here as well")
    given = parser.parse_args()
    rules = tuple(r for r in RULES if given.rules is None or r["name"] in given.rules)
    which = Which(given.federation, given.clients, given.byzantine, rules, tuple(given.momenta))
    if not given.table:
        runs = cells(range(1, given.seeds + 1), which)
        sweep = Sweep(runs, given.output, data_root=given.data_root, workers=given.workers)
        sweep.run(lambda experiment, row: None)
    cells_found = found(given.output, data_root=given.data_root)
    print(table(cells_found))
    if given.json:
        given.json.write_text(document(cells_found))


if __name__ == "__main__":
    main()
