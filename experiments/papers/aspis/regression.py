"""Linear regression under Byzantine workers: the study of ToN 2023, section VI-A.

``python -m experiments.papers.aspis.regression --seeds 3`` prints one Markdown table; with
``--json`` one JSON line per case. Full-batch gradient descent in double precision, K = 15, r = 3;
the second stage is the geometric median. 49,140 samples instead of 50,000, so that all schemes cut
them evenly. The learning rate is the best power of ten for each scheme, attack and q, as in the
paper.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import aggregate
from fedrobust.attacks import craft
from fedrobust.redundancy import (
    Assignment,
    Corruption,
    assign,
    corrupt,
    corrupted_labels,
    permute,
    window_adversaries,
)
from fedrobust.redundancy.decision import judge
from fedrobust.redundancy.rounds import OPTIMAL
from fedrobust.redundancy.window import Window
from fedrobust.seeds import generator

SAMPLES, DIMENSION, WORKERS, REPLICATION = 49_140, 100, 15, 3
RATES = tuple(10.0**-k for k in range(1, 7))
# Iterations to choose a rate, iterations of a run, length of a step, loss.
SCREEN, MOST, STILL, CONVERGED = 40, 400, 1e-10, 0.1
CHANGE, WINDOW = 50, 15  # T_b and T_d
DETECTION = {"aspis": "strict", "aspis_plus": "window"}
ATTACKS: dict[str, dict[str, Any]] = {
    "reversed gradient": {"name": "reversed_gradient", "scale": 10.0},
    "constant": {"name": "constant", "value": -10.0},
    "ALIE": {"name": "alie", "z": 1.0, "sign": 1},
}


@dataclass(frozen=True)
class Problem:
    """One draw of X and w: least squares whose files' gradients are G_i (w - w_true).

    ``grams`` is (files, d, d): X_i^T X_i of each file; ``true`` is (d,).
    """

    grams: Tensor
    true: Tensor

    def gradients(self, w: Tensor) -> Tensor:
        """Return X_i^T X_i w - X_i^T y_i of every file, (files, d)."""
        return self.grams @ (w - self.true)

    def loss(self, w: Tensor) -> float:
        """Return |y - X w|^2 / 2n."""
        gap = w - self.true
        return float(gap @ self.grams.sum(0) @ gap) / (2 * SAMPLES)


def draw(files: int, *, seed: int) -> Problem:
    """Draw X, w ~ N(0, 1); the same data for a seed, however they are cut into files."""
    source = generator(seed, "regression")
    x = torch.randn(SAMPLES, DIMENSION, generator=source, dtype=torch.float64)
    w = torch.randn(DIMENSION, generator=source, dtype=torch.float64)
    parts = x.view(files, -1, DIMENSION)
    return Problem(parts.mT @ parts, w)


@dataclass
class Defence:
    """One scheme against q Byzantine workers: where they are, and what the server makes of it.

    Attributes
    ----------
    moving
        Byzantine workers drawn anew every ``CHANGE`` iterations (ATT-3's placement); otherwise
        the lowest.
    """

    scheme: str
    q: int
    moving: bool
    seed: int
    window: Window | None = None

    def __post_init__(self) -> None:
        self.base = assign(self.scheme, workers=WORKERS, replication=REPLICATION)

    def attackers(self, iteration: int) -> tuple[Assignment, Corruption]:
        """Return the iteration's assignment and what the Byzantine workers distort."""
        made, chosen = self.base, None
        if self.scheme == "aspis_plus":
            made = permute(made, generator(self.seed, "labels", round=iteration))
        if self.moving:
            chosen = window_adversaries(
                WORKERS, q=self.q, iteration=iteration, length=CHANGE, seed=self.seed
            )
        name = "att3" if self.scheme == "aspis_plus" else OPTIMAL.get(self.scheme, "whole_group")
        return made, corrupt(name, made, q=self.q, adversaries=chosen)

    def step(self, honest: Tensor, attack: dict[str, Any], iteration: int) -> Tensor:
        """Return the server's step: detect, vote, and the mean or the geometric median."""
        made, corruption = self.attackers(iteration)
        verdict, self.window = judge(
            corrupted_labels(made, corruption),
            q=self.q,
            detection=DETECTION.get(self.scheme, "none"),
            length=WINDOW,
            window=self.window,
        )
        kept = (verdict.chosen >= 0).nonzero().flatten()
        wrong = corruption.distorted[verdict.chosen[kept], kept]
        values = honest[kept]
        if bool(wrong.any()):
            values = torch.where(wrong[:, None], self._sent(honest, attack)[kept], values)
        return values.mean(0) if verdict.plain else aggregate(values, "geometric_median")

    def _sent(self, honest: Tensor, attack: dict[str, Any]) -> Tensor:
        """Return what Byzantine workers send for each file, (files, d)."""
        # Of each file its own gradient; the other attacks send one vector for all files.
        if attack["name"] == "reversed_gradient":
            return -attack["scale"] * honest
        row = craft(honest, attack, n=WORKERS, f=self.q)[0]
        return row.to(honest).expand_as(honest)


def descend(
    problem: Problem, defence: Defence, attack: dict[str, Any], *, rate: float, most: int
) -> tuple[list[float], bool]:
    """Run gradient descent from zero; return the losses and whether it stood still or ran out.

    Ends when a step is shorter than ``STILL``, after ``most`` iterations, or when it has diverged.
    """
    w = torch.zeros(DIMENSION, dtype=torch.float64)
    losses = [problem.loss(w)]
    for iteration in range(most):
        try:
            move = rate * defence.step(problem.gradients(w), attack, iteration)
        except ValueError:  # values that are not finite
            return [*losses, math.inf], False
        w = w - move
        losses.append(problem.loss(w))
        # So far out it does not come back: the rest of the iterations would only take time.
        if not math.isfinite(losses[-1]) or losses[-1] > 1e6 * losses[0]:
            return losses, False
        if float(torch.linalg.vector_norm(move)) < STILL:
            break
    return losses, losses[-1] < CONVERGED


def best_rate(make: Callable[[], Defence], problem: Problem, attack: dict[str, Any]) -> float:
    """Return the power of ten with the least loss after ``SCREEN`` iterations."""

    def last(rate: float) -> float:
        final = descend(problem, make(), attack, rate=rate, most=SCREEN)[0][-1]
        # NaN is neither above nor below anything: ``min`` could choose its rate.
        return final if math.isfinite(final) else math.inf

    return min(RATES, key=last)


def study(
    scheme: str, q: int, attack: str, *, seeds: int, moving: bool = False, most: int = MOST
) -> dict[str, Any]:
    """Run one cell over several seeds, its rate tuned on the first."""
    files = assign(scheme, workers=WORKERS, replication=REPLICATION).files
    rate, finals, lengths, held = 0.0, [], [], 0
    for seed in range(seeds):
        problem = draw(files, seed=seed)

        def make(seed: int = seed) -> Defence:
            return Defence(scheme, q, moving, seed)

        # On the first seed alone: a rate for each would be tuned on what is then reported.
        rate = rate or best_rate(make, problem, ATTACKS[attack])
        losses, fine = descend(problem, make(), ATTACKS[attack], rate=rate, most=most)
        finals.append(losses[-1])
        goal = 1e-15
        lengths.append(next((i for i, loss in enumerate(losses) if loss < goal), None))
        held += fine
    return {
        "scheme": scheme + (", moving Byzantine workers" if moving else ""),
        "attack": attack,
        "q": q,
        "rate": rate,
        "converged": f"{held} of {seeds}",
        "final loss": [float(f"{value:.3g}") for value in finals],
        "iterations to 1e-15": lengths,
    }


def cases(*, seeds: int, most: int = MOST) -> Iterator[dict[str, Any]]:
    """Yield every cell: schemes, attacks, q = 2, 4, 6; then Byzantine workers that move."""
    for attack in ATTACKS:
        for q in (2, 4, 6):
            for scheme in ("none", "detox", "aspis"):
                yield study(scheme, q, attack, seeds=seeds, most=most)
    for scheme in ("aspis", "aspis_plus"):
        yield study(scheme, 6, "constant", seeds=seeds, moving=True, most=most)


def main() -> None:
    """Print the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=MOST, help="iterations at most")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    for number, row in enumerate(cases(seeds=options.seeds, most=options.most)):
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        if number == 0:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
