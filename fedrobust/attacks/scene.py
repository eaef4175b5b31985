"""What a search looks at: honest updates, directions and the rule, in full or in coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.attacks.moments import moments, unit
from fedrobust.attacks.probe import Rule, callable_rule
from fedrobust.attacks.reduction import in_span, reducible
from fedrobust.ranges import whole

SIZES = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0)  # of sigma
FARTHEST = 1e9  # a value beyond this is refused by most servers: such a vector does no harm

State = dict[str, Tensor] | None
Directions = dict[str, Callable[[], Tensor]]  # worked out when asked: each is as large as a row


@dataclass(frozen=True)
class Scene:
    """What a search looks at, in full or in coordinates: the same code serves both.

    Attributes
    ----------
    honest
        (h, m).
    centre, std, gradient
        (m,) float64: mean and deviations of the honest rows, and this round's gradient.
    signed
        -sign(gradient) std, a new tensor whenever asked: it is as large as a row.
    drift
        The sum of the rule's errors so far (m,); None where nobody looks at it.
    rule
        The rule as it is asked with rows of m coordinates.
    """

    honest: Tensor
    centre: Tensor
    std: Tensor
    gradient: Tensor
    signed: Callable[[], Tensor]
    rule: Rule | None
    drift: Tensor | None = None

    def directions(self) -> Directions:
        """Return what is tried, (m,) each, as long as ``std``."""
        sigma = torch.linalg.vector_norm(self.std)
        found: Directions = {
            "-gradient": lambda: -unit(self.gradient) * sigma,
            "-sign(gradient) std": self.signed,
            "-mean": lambda: -unit(self.centre) * sigma,
        }
        if (drift := self.drift) is None:
            return found
        found["-std"] = lambda: -self.std
        # In the first round there is no drift, and a direction of length 0 would waste its calls.
        return found | ({"drift": lambda: unit(drift) * sigma} if bool(drift.any()) else {})


def scene_of(
    honest: Tensor, rule: Rule | None, state: State, momentum: float, attack: str, refinements: int
) -> Scene:
    """Look at the honest rows in full."""
    whole(refinements, attack, "refinements", low=0)
    if rule is None:
        callable_rule(rule, attack)  # raises
    centre, std = moments(honest)
    gradient = instantaneous(centre, state, momentum)
    return Scene(honest, centre, std, gradient, lambda: -gradient.sign() * std, rule)


def in_coordinates(scene: Scene) -> Scene:
    """Return the scene in as few coordinates as it has vectors; itself where that is not exact."""
    if reducible(scene.rule) is None or not _near(scene):
        return scene
    drift = [] if scene.drift is None else [scene.drift]
    vectors = [scene.std, scene.gradient, scene.signed(), *drift]
    rule, honest, (std, gradient, signed, *drift) = in_span(scene.rule, scene.honest, vectors)
    if honest is scene.honest:
        return scene
    return Scene(
        honest, honest.mean(0), std, gradient, signed.clone, rule, drift[0] if drift else None
    )


def _near(scene: Scene) -> bool:
    """Whether no candidate can have a value that a server refuses: coordinates do not show it."""
    # No value of a direction is beyond its length, which is sigma for all of them.
    sigma = float(torch.linalg.vector_norm(scene.std))
    return float(scene.centre.abs().max()) + SIZES[-1] * sigma <= FARTHEST


def instantaneous(centre: Tensor, state: State, momentum: float) -> Tensor:
    """Return g = (m_t - beta m_(t-1)) / (1 - beta), (d,); before the first round m is 0."""
    before = torch.zeros_like(centre) if state is None else state["mean"].to(centre)
    return (centre - momentum * before) / (1 - momentum)
