"""Searches against the rule that the server runs: what ``auto`` adds to the fixed attacks.

Each sends the honest mean plus a multiple of one direction, the same vector for all attackers, and
asks the rule what that would do. What the members differ in is what they want of the answer, since
no single wish does most harm everywhere. The lengths are multiples of sigma, the Euclidean norm of
the coordinate-wise standard deviations of the honest updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.attacks.moments import moments, repeat, unit
from fedrobust.attacks.probe import Rule, prober
from fedrobust.attacks.record import Crafted
from fedrobust.failures import Refusal
from fedrobust.ranges import whole
from fedrobust.spec import SpecError

SIZES = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0)  # of sigma
FARTHEST = 1e9  # a value beyond this is refused by most servers: such a vector does no harm
BETTER = 1e-6  # relative: a gain below this is rounding, and the smaller vector is kept
REFINED = 2  # directions whose best size is refined

State = dict[str, Tensor] | None
Directions = dict[str, Callable[[], Tensor]]  # worked out when asked: each is as large as a row


@dataclass(frozen=True)
class Trial:
    """One candidate and what the rule made of it: its value, and the rule's output (d,)."""

    direction: str
    size: float
    value: float = -math.inf
    output: Tensor | None = None

    def beats(self, other: Trial) -> bool:
        """Whether it is better by more than rounding."""
        # -inf + BETTER * inf is NaN: no trial would ever beat one that was refused.
        if not math.isfinite(other.value):
            return self.value > other.value
        return self.value > other.value + BETTER * abs(other.value)


def gradient_search(
    honest: Tensor,
    *,
    n: int,
    f: int,
    refinements: int = 3,
    momentum: float = 0.0,
    rule: Rule | None = None,
    state: State = None,
) -> Crafted:
    """Push the rule's output against this round's gradient, whatever the momentum says.

    With worker momentum beta the updates are m_t = beta m_(t-1) + (1 - beta) g_t, and their mean
    lags behind. The attack reads g = (m_t - beta m_(t-1)) / (1 - beta) off the honest means of two
    rounds and maximises -<R, g>, R the rule's output, along -g, -sign(g) std and -mean.

    Parameters
    ----------
    refinements
        Halvings of the step around the best size of each of the two best directions, two questions
        each, after 24 on a coarse grid (0.25 to 256 sigma): 36 questions a round by default.
    momentum
        beta in [0, 1), handed in by the run.

    Raises
    ------
    ValueError
        If there is no rule; for refinements < 0.

    References
    ----------
    A design of this project; see the page on the adversary.
    """
    centre, std = moments(honest)
    gradient = instantaneous(centre, state, momentum)
    directions = downhill(centre, std, gradient)
    search = _searcher(honest, f, rule, "gradient_search", refinements)
    best, calls = search(centre, directions, lambda output: -float(output @ gradient))
    return Crafted(
        repeat(vector_of(best, centre, directions), f, honest),
        {"mean": centre.float()},
        notes(best, calls),
    )


def drift_search(
    honest: Tensor,
    *,
    n: int,
    f: int,
    refinements: int = 3,
    momentum: float = 0.0,
    rule: Rule | None = None,
    state: State = None,
) -> Crafted:
    """Carry the sum of the rule's errors over the rounds as far as it goes.

    With B the sum of R - mean over the rounds so far, R the rule's output, it maximises
    |B + (R - mean)|, along the directions of ``gradient_search``, -std and B.

    Parameters
    ----------
    refinements, momentum
        As in ``gradient_search``: 52 questions a round by default, 44 in the first.

    Raises
    ------
    ValueError
        As ``gradient_search``.

    References
    ----------
    As ``gradient_search``.
    """
    centre, std = moments(honest)
    gradient = instantaneous(centre, state, momentum)
    drift = torch.zeros_like(centre) if state is None else state["drift"].to(centre)
    directions = downhill(centre, std, gradient) | {"-std": lambda: -std}
    if state is not None:
        # In the first round there is no drift, and a direction of length 0 would waste its calls.
        directions["drift"] = lambda: unit(drift) * torch.linalg.vector_norm(std)
    # B - mean, so that goal + R is B + (R - mean).
    goal = drift - centre
    search = _searcher(honest, f, rule, "drift_search", refinements)
    best, calls = search(
        centre, directions, lambda output: float(torch.linalg.vector_norm(goal + output))
    )
    moved = drift if best.output is None else goal + best.output
    return Crafted(
        repeat(vector_of(best, centre, directions), f, honest),
        {"mean": centre.float(), "drift": moved.float()},
        notes(best, calls),
    )


def gradient_shift(
    honest: Tensor, *, n: int, f: int, z: float = 2.0, momentum: float = 0.0, state: State = None
) -> Crafted:
    """Send the honest mean less z sigma along this round's gradient; the rule is not asked.

    Parameters
    ----------
    z
        How far, in units of sigma.
    momentum
        As in ``gradient_search``.

    References
    ----------
    As ``gradient_search``.
    """
    if not math.isfinite(z):
        raise ValueError(f"gradient_shift needs a finite z, got {z}")
    centre, std = moments(honest)
    gradient = instantaneous(centre, state, momentum)
    sent = centre - z * torch.linalg.vector_norm(std) * unit(gradient)
    return Crafted(repeat(sent, f, honest), {"mean": centre.float()})


def downhill(centre: Tensor, std: Tensor, gradient: Tensor) -> Directions:
    """Return directions (d,) against the gradient and the mean, each as long as ``std``."""
    sigma = torch.linalg.vector_norm(std)
    return {
        "-gradient": lambda: -unit(gradient) * sigma,
        "-sign(gradient) std": lambda: -gradient.sign() * std,
        "-mean": lambda: -unit(centre) * sigma,
    }


def instantaneous(centre: Tensor, state: State, momentum: float) -> Tensor:
    """Return g = (m_t - beta m_(t-1)) / (1 - beta), (d,); before the first round m is 0."""
    before = torch.zeros_like(centre) if state is None else state["mean"].to(centre)
    return (centre - momentum * before) / (1 - momentum)


def vector_of(best: Trial, centre: Tensor, directions: Directions) -> Tensor:
    """Return the chosen candidate, (d,); the honest mean where the rule refused every one."""
    return centre if best.output is None else centre + best.size * directions[best.direction]()


def notes(best: Trial, calls: int) -> dict[str, float | str]:
    """Say what was chosen: for the round's row."""
    return {"calls": calls, "size": round(best.size, 6), "direction": best.direction}


Search = Callable[[Tensor, Directions, Callable[[Tensor], float]], tuple[Trial, int]]


def _searcher(honest: Tensor, f: int, rule: Rule | None, attack: str, refinements: int) -> Search:
    """Return the search (origin, directions, worth of an output) -> best trial, calls."""
    whole(refinements, attack, "refinements", low=0)
    probe = prober(rule, honest, f, attack)

    def search(
        origin: Tensor, directions: Directions, worth: Callable[[Tensor], float]
    ) -> tuple[Trial, int]:
        calls = 0

        def tried(direction: str, size: float) -> Trial:
            nonlocal calls
            calls += 1
            output = _asked(probe, directions[direction]().mul_(size).add_(origin))
            value = -math.inf if output is None else worth(output)
            # The rule's own precision holds all of its answer in less memory.
            kept = None if output is None else output.to(honest.dtype)
            return Trial(direction, size, -math.inf if math.isnan(value) else value, kept)

        firsts = [best_of(tried(name, size) for size in SIZES) for name in directions]
        ranked = _ranked(firsts)[:REFINED]
        return best_of(_refined(trial, tried, refinements) for trial in ranked), calls

    return search


def _asked(probe: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor | None:
    """Return the rule's output; None where it refuses, or where a server would refuse the reply."""
    # So written, NaN is refused as well.
    if not bool((vector.abs() <= FARTHEST).all()):
        return None
    try:
        return probe(vector)
    except (Refusal, SpecError):
        return None


def best_of(trials: Iterable[Trial]) -> Trial:
    """Return the best of some trials; the first of those that only rounding tells apart."""
    first, *others = trials
    for trial in others:
        first = trial if trial.beats(first) else first
    return first


def _ranked(trials: list[Trial]) -> list[Trial]:
    """Order trials from the best on; those that only rounding tells apart keep their order."""
    left, ranked = list(trials), []
    while left:
        ranked.append(best_of(left))
        # By identity: == would compare the outputs, tensors that have no one truth value.
        left = [trial for trial in left if trial is not ranked[-1]]
    return ranked


def _refined(best: Trial, tried: Callable[[str, float], Trial], refinements: int) -> Trial:
    """Try sizes around the best one, by factors of 2^(1/2), 2^(1/4), ... both ways."""
    for step in range(1, refinements + 1):
        factor = 2.0 ** (0.5**step)
        sizes = [best.size * by for by in (factor, 1 / factor)]
        around = [tried(best.direction, size) for size in sizes if size <= SIZES[-1]]
        best = best_of([best, *around])
    return best
