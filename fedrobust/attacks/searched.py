"""Searches against the rule that the server runs: what ``auto`` adds to the fixed attacks.

Each sends the honest mean plus a multiple of one direction, the same vector for all attackers, and
asks the rule what that would do. What the members differ in is what they want of the answer, since
no single wish does most harm everywhere. The lengths are multiples of sigma, the Euclidean norm of
the coordinate-wise standard deviations of the honest updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrobust.attacks.moments import moments, repeat, unit
from fedrobust.attacks.probe import Rule, prober
from fedrobust.attacks.record import Crafted
from fedrobust.attacks.scene import (
    FARTHEST,
    SIZES,
    Scene,
    State,
    in_coordinates,
    instantaneous,
    scene_of,
)
from fedrobust.failures import Refusal
from fedrobust.spec import SpecError

BETTER = 1e-6  # relative: a gain below this is rounding, and the smaller vector is kept
REFINED = 2  # directions whose best size is refined


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
    scene = scene_of(honest, rule, state, momentum, "gradient_search", refinements)
    asked = in_coordinates(scene)
    best, calls = _search(asked, f, refinements, lambda output: -float(output @ asked.gradient))
    return Crafted(
        repeat(vector_of(best, scene), f, honest),
        {"mean": scene.centre.float()},
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
        As in ``gradient_search``: 52 questions a round by default, 44 in the first; one more where
        they are asked in coordinates.

    Raises
    ------
    ValueError
        As ``gradient_search``.

    References
    ----------
    As ``gradient_search``.
    """
    scene = scene_of(honest, rule, state, momentum, "drift_search", refinements)
    drift = torch.zeros_like(scene.centre) if state is None else state["drift"].to(scene.centre)
    scene = replace(scene, drift=drift)
    asked = in_coordinates(scene)
    # B - mean, so that goal + R is B + (R - mean).
    goal = -asked.centre if asked.drift is None else asked.drift - asked.centre
    best, calls = _search(
        asked, f, refinements, lambda output: float(torch.linalg.vector_norm(goal + output))
    )
    sent = vector_of(best, scene)
    output = best.output
    if output is not None and asked.honest is not honest:
        # Once more in full: what is remembered of many rounds is what the rule itself said.
        output, calls = _asked(prober(rule, honest, f, "drift_search"), sent), calls + 1
    moved = drift if output is None else drift - scene.centre + output
    return Crafted(
        repeat(sent, f, honest),
        {"mean": scene.centre.float(), "drift": moved.float()},
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


def vector_of(best: Trial, scene: Scene) -> Tensor:
    """Return the chosen candidate, (d,); the honest mean where the rule refused every one."""
    if best.output is None:
        return scene.centre
    return scene.centre + best.size * scene.directions()[best.direction]()


def notes(best: Trial, calls: int) -> dict[str, float | str]:
    """Say what was chosen: for the round's row."""
    return {"calls": calls, "size": round(best.size, 6), "direction": best.direction}


def _search(
    scene: Scene, f: int, refinements: int, worth: Callable[[Tensor], float]
) -> tuple[Trial, int]:
    """Search for the candidate whose output is worth most; return it and the number of calls."""
    probe, directions, calls = prober(scene.rule, scene.honest, f, "search"), scene.directions(), 0

    def tried(direction: str, size: float) -> Trial:
        nonlocal calls
        calls += 1
        output = _asked(probe, directions[direction]().mul_(size).add_(scene.centre))
        value = -math.inf if output is None else worth(output)
        # The rule's own precision holds all of its answer in less memory.
        kept = None if output is None else output.to(scene.honest.dtype)
        return Trial(direction, size, -math.inf if math.isnan(value) else value, kept)

    firsts = [best_of(tried(name, size) for size in SIZES) for name in directions]
    ranked = _ranked(firsts)[:REFINED]
    return best_of(_refined(trial, tried, refinements) for trial in ranked), calls


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
