"""How much faster a second worker makes a step of distributed adversarial training.

``python -m experiments.benchmarks.speedup --json``; about five minutes on 2 cores. The same 2,048
images a step, PGD-7, by one worker and by two, each a process of its own behind Flower's engine.
``reference`` is the round of one worker; ``ratio`` two workers' over it, at best a half.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.measuring import show
from experiments.flower_run import run_on_flower
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment

BATCH = 2048
BITS = (32, 8)


def experiment(workers: int, *, rounds: int, bits: int) -> Experiment:
    """Share one batch out among the workers."""
    return from_dict(
        {
            "data": "fashionmnist-sample",
            "model": "cnn",
            "clients": workers,
            "byzantine": 0,
            "rounds": rounds,
            "seed": 1,
            "rule": "mean",
            "attack": "none",
            "training": {"batch_size": BATCH // workers},
            "server": {"lr": 0.05, "evaluate_every": 1000},
            "adversarial": {
                "perturbation": {"name": "pgd", "eps": 0.1, "step_size": 0.025, "steps": 7}
            },
            "compression": {"bits": bits, "sides": "both"},
        }
    )


def cases(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one line per width of the wire."""
    for bits in BITS:
        seconds = {}
        for workers in (1, 2):
            rows = run_on_flower(experiment(workers, rounds=rounds, bits=bits), hosts=workers)
            # The first round starts the workers, the last one evaluates.
            seconds[workers] = statistics.median(row["seconds"] for row in rows[2:-1])
        yield {
            "case": f"DAT-PGD, {BATCH} images a step, {bits} bits, 2 workers",
            "seconds": seconds[2],
            "reference": "one worker",
            "reference_seconds": seconds[1],
            "ratio": seconds[2] / seconds[1],
            "goal": None,
            "peak_bytes": None,
        }


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    show(
        cases(rounds=options.rounds),
        lambda row: f"{row['case']:50s} {row['seconds']:.2f} s, {row['ratio']:.2f} of one worker's",
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
