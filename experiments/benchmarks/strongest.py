"""None, the best published attack, and ``auto``, against 12 defences with and without NNM.

    python -m experiments.benchmarks.strongest --output DIR --seeds 1 --data-root FOLDER

n = 20, f = 4 (or ``--clients 51 --byzantine 12``), Dirichlet 1, FashionMNIST, ``pooled_mlp``,
gradient mode, no server momentum, worker momentum 0.9 and 0; ``--federation`` takes another
federation. Finished runs are not run again, so that seeds may be added later; the table holds what
is finished. The members were frozen before the first of these cells was run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.results import load
from experiments.sweep import Sweep
from experiments.worst_case import WorstCase
from fedrobust.experiment.load import expand
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

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
CLEAR = 0.05  # of accuracy
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


def finished(runs: Iterable[Experiment], output: Path) -> list[Path]:
    """Return the folders of the runs that are done."""
    folders = [RunFolder(output, run) for run in runs]
    return [folder.path for folder in folders if folder.finished]


def table(found: list[tuple[Experiment, WorstCase]]) -> str:
    """Write the cells as Markdown, one line each, and the count of clear differences."""
    lines = [
        "| momentum | defence | none | best published | auto | winner | more harm by | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for e, one in found:
        gain = one.fixed_accuracy - one.accuracy
        lines.append(
            f"| {e.worker_momentum:g} | {e.defence} | {100 * one.clean:.1f} "
            f"| {100 * one.fixed_accuracy:.1f} ({one.fixed}) "
            f"| {100 * one.accuracy:.1f}{_interval(one)} | {one.winner} "
            f"| {100 * gain:.1f} | {one.seeds} |"
        )
    for momentum in MOMENTA:
        gains = [o.fixed_accuracy - o.accuracy for e, o in found if e.worker_momentum == momentum]
        clear = sum(gain >= CLEAR for gain in gains)
        lines.append(f"\nmomentum {momentum:g}: {clear} of {len(gains)} cells by 5 points or more")
    return "\n".join(lines)


def _interval(one: WorstCase) -> str:
    return "" if math.isnan(one.interval) else f" ± {100 * one.interval:.1f}"


def summary(
    output: Path,
    seeds: int,
    which: Which = Which(),
) -> list[tuple[Experiment, WorstCase]]:
    """Return the cells whose runs are all there, for as many seeds as are whole."""
    by_cell: dict[tuple[str, float], list[Experiment]] = {}
    for run in cells(range(1, seeds + 1), which):
        by_cell.setdefault((run.defence, run.worker_momentum), []).append(run)
    found = []
    for runs in by_cell.values():
        done = [
            path
            for seed in range(1, seeds + 1)
            if len(mine := [r for r in runs if r.seed == seed])
            == len(paths := finished(mine, output))
            for path in paths
        ]
        if done:
            # Exactly one: a cell's runs differ in attack and seed alone.
            (one,) = load(done).worst_cases
            found.append((runs[0], one))
    return found


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
    found = summary(given.output, given.seeds, which)
    print(table(found))
    if given.json:
        told = [
            {"momentum": e.worker_momentum, "defence": e.defence, "clean": o.clean,
             "fixed": o.fixed, "fixed_accuracy": o.fixed_accuracy, "winner": o.winner,
             "accuracy": o.accuracy, "seeds": o.seeds, "seconds": round(o.seconds, 1),
             "flags": list(o.flags)}
            for e, o in found
        ]  # fmt: skip
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
