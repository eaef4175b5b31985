"""LALR's claim: from 1 to 32 workers at a fixed number of epochs, both optimizers tuned alike.

``python -m experiments.papers.dat.scaling`` trains each optimizer at five rates a number of workers
on the validation split (seed 0), takes the rate of the highest robust accuracy, trains that on the
whole training set for three seeds, and prints test accuracies. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from experiments.papers.dat.tables import rows_of
from experiments.simulation import resolve
from experiments.tables import half_width
from fedrobust.data import load

BASE = Path(__file__).with_name("large_batch.toml")
WORKERS = (32, 1, 8, 2, 16, 4)  # the ends of the claim first
EPOCHS, BATCH = 10, 64
SGD: dict[str, Any] = {"server.optimizer": "sgd", "server.momentum": 0.9}
RATES: dict[str, tuple[float, ...]] = {
    "SGD": (0.02, 0.05, 0.1, 0.2, 0.5),
    "LALR": (0.003, 0.01, 0.03, 0.1, 0.3),
}
ROBUST = "robust_accuracy"


def changes(optimizer: str, rate: float, workers: int, data: str, seed: int) -> dict[str, Any]:
    """Return what one run changes: as many rounds as the epochs have, warm-up a tenth of them."""
    rounds = max(1, round(EPOCHS * len(load(data).train_labels) / (BATCH * workers)))
    given = {"data": data, "seed": seed, "clients": workers, "rounds": rounds, "server.lr": rate}
    return given | {"server.warmup": rounds // 10} | (SGD if optimizer == "SGD" else {})


def final(optimizer: str, rate: float, workers: int, data: str, seed: int, output: Path) -> Any:
    """Train, or read, one run; return its last row."""
    (e,) = resolve(BASE, changes(optimizer, rate, workers, data, seed))
    return rows_of(e, output, None)[-1]


def tuned(optimizer: str, workers: int, output: Path) -> float:
    """Return the rate of the highest robust accuracy on the validation split."""
    data = "fashionmnist-sample-validation"
    found = {
        rate: final(optimizer, rate, workers, data, 0, output)[ROBUST] for rate in RATES[optimizer]
    }
    return max(found, key=lambda rate: found[rate])


def cell(values: list[float]) -> str:
    """Write a mean in % with its interval."""
    half = half_width(values)
    return f"{100 * statistics.fmean(values):.1f} ± {100 * half:.1f}"


def main() -> None:
    """Tune, train, print a line a number of workers and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--output", type=Path, default=Path("results/scaling"))
    given = parser.parse_args()
    print("| workers | batch | optimizer | rate | clean % | robust % | seeds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for workers in given.workers:
        for optimizer in RATES:
            rate = tuned(optimizer, workers, given.output)
            rows = [
                final(optimizer, rate, workers, "fashionmnist-sample", seed, given.output)
                for seed in range(1, given.seeds + 1)
            ]
            clean, robust = ([row[key] for row in rows] for key in ("accuracy", ROBUST))
            line = [workers, workers * BATCH, optimizer, rate, cell(clean), cell(robust), len(rows)]
            print("| " + " | ".join(map(str, line)) + " |", flush=True)


if __name__ == "__main__":
    main()
