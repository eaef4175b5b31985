"""What redundancy costs in simulation, and what commit and reveal save on the wire.

``python -m experiments.benchmarks.redundancy --json``; about two minutes on one core. A round is
everything but the evaluation: commitments, detection, reveal, second stage, step. ``reference`` is
the bare loop that computes each of the 455 files' gradients once, with nothing around it. Seconds
are the process's own (CPU), taken in turns; ``ratio`` is the median of each turn's. What the
simulated attackers pay to craft and hash their values is no part of the protocol (on real nodes
their machines pay it): ``attackers_seconds`` says how much of ``seconds`` it is, and ``protocol``
is the ratio without it. For bytes the lines hold ``bytes`` and ``reference_bytes``: every copy of
every file sent, as in the papers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from flwr.app import ConfigRecord

from clients.modes import redundancy
from clients.node import make_node
from clients.redundancy import byzantine, experiment_gradients
from clients.redundancy.gradients import Place
from experiments.benchmarks.measuring import peak_of, seconds_of, show
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import InProcessGrid, array_of
from fedrobust.flower.commit_reveal import FLOAT
from fedrobust.redundancy import assign, traffic
from fedrobust.redundancy import rounds as files
from strategies.redundancy.from_experiment import redundant_strategy
from strategies.redundancy.sums import SIZE

REVERSED = {"name": "reversed_gradient", "scale": 100.0, "knowledge": "own"}
ALIE = {"name": "alie", "z": 1.0, "knowledge": "omniscient"}
CASES = (
    ("all found (ATT-1), mean of sums", 16, {"attack": REVERSED, "adversary": "weak"}, 1.1),
    ("none found (ATT-2), contested files dropped, mean of sums", 16,
     {"attack": REVERSED, "adversary": "optimal"}, 1.1),
    ("no disagreement (wholly owned files), medians of buckets", 16,
     {"attack": REVERSED, "adversary": "lone_files"}, 1.1),
    ("none found (ATT-2), strict rule, median of 455 files", 16,
     {"attack": ALIE, "adversary": "optimal", "detection": "strict"}, None),
    ("all found (ATT-1), mean of sums", 3, {"attack": REVERSED, "adversary": "weak"}, None),
)  # fmt: skip
GOAL_BYTES = 1 / 100
RESNET18 = 11_173_962


def experiment(
    samples: int, *, attack: dict[str, Any], adversary: str, detection: str = "auto"
) -> Experiment:
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
            "redundancy": {
                "name": "aspis",
                "batch": 455 * samples,
                "adversary": adversary,
                "detection": detection,
            },
        }
    )


class Rounds:
    """One strategy and grid; each call of ``round`` is a round of its own."""

    def __init__(self, e: Experiment) -> None:
        self.rows: list[dict[str, Any]] = []
        self._node = make_node(e)
        self._grid = InProcessGrid(redundancy(self._node).train, clients=e.clients)
        nodes = dict(enumerate(range(e.clients), start=1))
        self._examples = len(self._node.labels[0])
        self._strategy = redundant_strategy(
            e, self._node.model, examples=self._examples, clients=nodes
        )
        self._vector = self._node.model.vector.clone()
        self._number = 0

    def round(self) -> None:
        """Run one round over the grid."""
        self._number += 1
        # Always the same model: no step is taken over, so that all rounds cost alike.
        arrays = array_of(model=self._vector)
        asked = self._strategy.configure_train(self._number, arrays, ConfigRecord(), self._grid)
        replies = self._grid.send_and_receive(asked)
        stepped, _ = self._strategy.aggregate_train(self._number, replies)
        assert stepped is not None, self.rows
        self.rows.append(self._strategy.row)

    def turns(self, times: int) -> tuple[list[float], list[float], list[float]]:
        """Return the CPU seconds of rounds, of the attackers in them, and of the bare loop."""
        whole, attackers, bare = list[float](), list[float](), list[float]()
        self.round()  # to warm up
        self.once()
        for _ in range(times):
            with _crafting() as spent:
                whole.append(seconds_of(self.round, clock=time.process_time))
            attackers.append(spent[0])
            bare.append(seconds_of(self.once, clock=time.process_time))
        return whole, attackers, bare

    def once(self) -> None:
        """Compute each file's gradient once, and nothing else."""
        plan = files.plan(self._node.experiment, examples=self._examples, server_round=1)
        place = Place(self._vector, torch.empty(0), plan)
        indices = plan.indices
        for file in range(len(indices)):
            experiment_gradients.compute(self._node, place, indices, [file])


def rows(*, times: int) -> Iterator[dict[str, Any]]:
    """Yield one line per case."""
    byte_lines = []
    for name, samples, settings, goal in CASES:
        rounds = Rounds(experiment(samples, **settings))  # type: ignore[arg-type]
        whole, attackers, bare = rounds.turns(times)
        last = rounds.rows[-1]
        own = [a - b for a, b in zip(whole, attackers, strict=True)]
        yield {
            "case": f"Aspis round, K=15, r=3, q=4, {samples} images a file: {name}",
            "seconds": statistics.median(whole),
            "attackers_seconds": statistics.median(attackers),
            "reference": "each of 455 files' gradients once",
            "reference_seconds": statistics.median(bare),
            "ratio": _ratio(whole, bare),
            "protocol": _ratio(own, bare),
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


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _crafting() -> Iterator[list[float]]:
    """Count, inside the block, the CPU seconds in which Byzantine workers craft and hash."""
    spent, true = [0.0], {name: getattr(byzantine, name) for name in ("craft", "digest")}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **settings: Any) -> Any:
            begin = time.process_time()
            result = function(*args, **settings)
            spent[0] += time.process_time() - begin
            return result

        return called

    for name, function in true.items():
        setattr(byzantine, name, timed(function))
    try:
        yield spent
    finally:
        for name, function in true.items():
            setattr(byzantine, name, function)


def resnet18() -> Iterator[dict[str, Any]]:
    """Yield the same ratio for ResNet-18, from the protocol's own counts."""
    whole = traffic(assign("aspis", workers=15, replication=3), parameters=RESNET18)
    found = whole.digests + 11 * whole.per_worker // 15  # the honest of q = 4 send a sum each
    yield _bytes("bytes of a round, ResNet-18: all found", found, whole.naive, GOAL_BYTES)
    sketches = 455 * 3 * SIZE * FLOAT  # 13 of 15 workers hold every file
    sums = whole.digests + sketches + 13 * whole.per_worker // 15
    yield _bytes("bytes of a round, ResNet-18: none found, sums", sums, whole.naive, GOAL_BYTES)
    files = whole.digests + whole.per_file
    yield _bytes("bytes of a round, ResNet-18: strict rule, files", files, whole.naive, None)


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
