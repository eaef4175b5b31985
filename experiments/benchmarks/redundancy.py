"""What redundancy costs in simulation, and what commit and reveal save on the wire.

``python -m experiments.benchmarks.redundancy --json``; about two minutes on one core. A round is
everything but the evaluation: commitments, detection, reveal, second stage, step. ``reference`` is
the bare loop that computes each of the 455 files' gradients once, with nothing around it. For bytes
the lines hold ``bytes`` and ``reference_bytes``: every copy of every file sent, as in the papers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from flwr.app import ConfigRecord

from clients.modes import redundancy
from clients.node import make_node
from clients.redundancy.gradients import FileGradients
from experiments.benchmarks.measuring import peak_of, show, side_by_side
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import InProcessGrid, array_of
from fedrobust.redundancy import assign, traffic
from strategies.redundancy.strategy import RedundantStrategy

REVERSED = {"name": "reversed_gradient", "scale": 100.0, "knowledge": "own"}
ALIE = {"name": "alie", "z": 1.0, "knowledge": "omniscient"}
CASES = (
    ("liars found, mean of sums", 16, {"attack": REVERSED, "adversary": "weak"}, 1.2),
    ("liars not found, median of 455 files", 16, {"attack": ALIE, "adversary": "optimal"}, None),
    ("liars found, mean of sums", 3, {"attack": REVERSED, "adversary": "weak"}, None),
    ("liars not found, median of 455 files", 3, {"attack": ALIE, "adversary": "optimal"}, None),
)
GOAL_BYTES = 1 / 90
RESNET18 = 11_173_962


def experiment(samples: int, *, attack: dict[str, Any], adversary: str) -> Experiment:
    """Aspis with K = 15, r = 3, q = 4 on the shipped sample and a small CNN."""
    return from_dict(
        {
            "data": "fashionmnist-sample",
            "model": "cnn",
            "clients": 15,
            "byzantine": 4,
            "rounds": 1,
            "seed": 1,
            "placement": "first",
            "rule": "median",
            "attack": attack,
            "redundancy": {"name": "aspis", "batch": 455 * samples, "adversary": adversary},
        }
    )


class Rounds:
    """One strategy and grid; each call of ``round`` is a round of its own."""

    def __init__(self, e: Experiment) -> None:
        self.rows: list[dict[str, Any]] = []
        self._node = make_node(e)
        self._grid = InProcessGrid(redundancy(self._node).train, clients=e.clients)
        nodes = dict(enumerate(range(e.clients), start=1))
        self._strategy = RedundantStrategy(e, clients=nodes)
        self._vector = self._node.model.vector.clone()
        self._number = 0

    def round(self) -> None:
        """Run one round over the grid."""
        self._number += 1
        arrays = array_of(model=self._vector)
        asked = self._strategy.configure_train(self._number, arrays, ConfigRecord(), self._grid)
        replies = self._grid.send_and_receive(asked)
        stepped, _ = self._strategy.aggregate_train(self._number, replies)
        assert stepped is not None, self.rows
        self.rows.append(self._strategy.row)

    def once(self) -> None:
        """Compute each file's gradient once, and nothing else."""
        bench = FileGradients(self._node).turn_to(self._vector, 1)
        for file in range(bench.assignment.files):
            bench._compute(file)


def rows(*, times: int) -> Iterator[dict[str, Any]]:
    """Yield one line per case."""
    byte_lines = []
    for name, samples, settings, goal in CASES:
        rounds = Rounds(experiment(samples, **settings))  # type: ignore[arg-type]
        ours, reference = side_by_side(rounds.round, rounds.once, times=times, limit=60.0)
        last = rounds.rows[-1]
        yield {
            "case": f"Aspis round, K=15, r=3, q=4, {samples} images a file: {name}",
            "seconds": ours,
            "reference": "each of 455 files' gradients once",
            "reference_seconds": reference,
            "ratio": ours / reference,
            "goal": goal,
            "peak_bytes": peak_of(rounds.round),
        }
        if samples == CASES[0][1]:
            byte_lines.append(
                _bytes(
                    f"bytes of a round, {rounds._vector.numel()} parameters: {name}",
                    last["bytes_up"],
                    last["bytes_naive"],
                    GOAL_BYTES if goal else None,
                )
            )
    yield from byte_lines
    yield from resnet18()


def resnet18() -> Iterator[dict[str, Any]]:
    """Yield the same ratio for ResNet-18, from the protocol's own counts."""
    whole = traffic(assign("aspis", workers=15, replication=3), parameters=RESNET18)
    sketches, workers = 455 * 3 * 32 * 8, 11  # of 32 float64 a copy; the honest of q = 4
    sums = whole.digests + sketches + workers * whole.per_worker // 15
    yield _bytes("bytes of a round, ResNet-18: liars found", sums, whole.naive, GOAL_BYTES)
    files = whole.digests + whole.per_file
    yield _bytes("bytes of a round, ResNet-18: liars not found", files, whole.naive, None)


def _bytes(case: str, ours: int, naive: int, goal: float | None) -> dict[str, Any]:
    return {
        "case": case,
        "bytes": ours,
        "reference": "every copy of every file",
        "reference_bytes": naive,
        "ratio": ours / naive,
        "goal": goal,
    }


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    show(
        rows(times=options.times),
        lambda row: f"{row['case']:75s} {row['ratio']:8.4f}",
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
