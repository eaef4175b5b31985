"""Attack the redundant protocol at random, round after round, and check one invariant.

``python -m experiments.benchmarks.redundancy_campaign --rounds 20000 --json``; about five minutes
on one core. In each run up to q workers are Byzantine. They know the protocol, the data and the
model, see every order, and agree among themselves. Of every message they may distort the values
consistently, reveal or add up something else than they committed to, hide in the null space of the
last sketch they saw, answer with what was said before or by another worker, twice, in an honest
worker's name, in nonsense, or not at all.

The invariant: a step that is taken differs from the mean over its true files by at most
``STATED`` times the mean of their norms where the plain mean was taken; and where buckets were
compared each coordinate is between the least and the greatest of all true files. No honest worker
is ever convicted by its own word.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence

import torch
from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from clients.redundancy.gradients import FileGradients, Place
from clients.redundancy.stages import answer, honest, read_task
from experiments.benchmarks.protocol_adversary import (
    FEATURES,
    LENGTH,
    OUTPUTS,
    Adversary,
    Saboteur,
)
from fedrobust.flower import InProcessGrid, array_of, tensor_of
from strategies.redundancy.strategy import RedundantStrategy

STATED = 1e-3  # what ``reveal_sums`` promises
CASES = ((5, 1), (5, 2), (7, 2), (7, 3))  # workers, q; r = 3


class Problem:
    """Linear regression on random data: the gradient of a file in closed form."""

    def __init__(self, samples: int = 70) -> None:
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, FEATURES, generator=source)
        self.y = torch.randn(samples, OUTPUTS, generator=source)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def compute(self, place: Place, indices: Tensor, files: Sequence[int]) -> list[Tensor]:
        """Return each file's gradient of half the mean squared error."""
        weight = place.vector.view(OUTPUTS, FEATURES)
        made = []
        for file in files:
            x, y = self.x[indices[file]], self.y[indices[file]]
            made.append((((x @ weight.T - y).T @ x) / len(x)).flatten())
        return made


def play(
    choices: Sequence[int], *, workers: int, q: int, rounds: int, detection: str = "contested"
) -> Counter[str]:
    """Run some rounds against an adversary; return what happened.

    Raises
    ------
    AssertionError
        If the invariant is broken.
    """
    adversary = Adversary(choices, frozenset(random.Random(choices[0]).sample(range(workers), q)))
    problem = Problem()
    values = FileGradients(problem.compute)
    turn: list[int] = [0]

    def app(message: Message, context: Context) -> Message | None:
        task = read_task(message, context)
        values.turn_to(task.vector, task.statistics, task.plan)
        if turn[0] != task.plan.round:
            turn[0] = task.plan.round
            adversary.new_round(values)
        if task.worker not in adversary.byzantine:
            return answer(message, values, honest(values, task.worker))
        copies = adversary.copies(values, task.worker)
        return adversary.spoil(message, answer(message, values, copies))

    # Aspis has a file for every three of the workers: C(5, 3) or C(7, 3).
    files = 10 if workers == 5 else 35
    strategy = RedundantStrategy(
        model=lambda: nn.Linear(FEATURES, OUTPUTS, bias=False), loss=None, data=problem,
        workers=workers, replication=3, q=q, detection=detection, batch=2 * files,
        server_lr=1.0, secret=2**70 + choices[0],
    )  # fmt: skip
    grid = Saboteur(InProcessGrid(app, clients=workers, run_config={}), adversary)
    arrays, seen = array_of(model=torch.zeros(LENGTH)), Counter[str]()
    for number in range(1, rounds + 1):
        before = tensor_of(arrays["model"])
        asked = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        stepped, _ = strategy.aggregate_train(number, grid.send_and_receive(asked))
        row = strategy.history[-1]
        seen.update(["rounds", str(row.get("path", "kept"))])
        convicted = {int(w) for w in {**row.get("proven", {}), **row.get("caught", {})}}
        assert convicted <= adversary.byzantine, (convicted, adversary.byzantine, row)
        if stepped is None:
            continue
        arrays = array_of(model=0.2 * tensor_of(stepped["model"]) + 0.8 * before)
        true = values.all_values()
        step = before - tensor_of(stepped["model"])
        _check(step, true, strategy.kept, str(row["path"]))
        seen["caught"] += len(row["caught"])
    return seen


def _check(step: Tensor, true: Tensor, kept: Sequence[int], path: str) -> None:
    """Compare a step with what the true values allow."""
    if path == "sum":
        rows = true[list(kept)]
        gap = torch.linalg.vector_norm(step - rows.mean(0))
        # Beside the promise, the rounding of the step itself.
        allowed = STATED * torch.linalg.vector_norm(rows, dim=1).mean() + 1e-6
        assert gap <= allowed, f"a step off by {gap:.3g}, {allowed:.3g} is stated"
        return
    low, high = true.min(0).values - 1e-5, true.max(0).values + 1e-5
    assert bool(((step >= low) & (step <= high)).all()), "a step outside of the true files"


def main() -> None:
    """Play until so many rounds are over; print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, seen, began, games = random.Random(options.seed), Counter[str](), time.time(), 0
    while seen["rounds"] < options.rounds:
        workers, q = CASES[source.choice((0, 1, 1, 2, 3))]
        choices = [source.randrange(2**16) for _ in range(source.randint(5, 200))]
        seen += play(choices, workers=workers, q=q, rounds=5)
        games += 1
    told = {"games": games, **seen, "violations": 0, "seconds": round(time.time() - began, 1)}
    print(json.dumps(told) if options.json else "\n".join(f"{k}: {v}" for k, v in told.items()))


if __name__ == "__main__":
    main()
