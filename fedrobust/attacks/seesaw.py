"""Seesaw: push the update up and down around a reference. Interpretations, all of them.

Yang, Luo, Dong, Li, arXiv 2410.05161 (IEEE SmartIoT 2024). Of that paper only the title, the
abstract and the index terms ("Directional Deviation Attack") were available, with an unverified
digest that says the reference is the median of the normal nodes' gradients. No formula, parameter
or result of the authors is known here: every mode below is an interpretation of this project, and
the default is chosen by measurement, not by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.attacks import moments
from fedrobust.spec import suggest

DEFAULT_MODE = "coordinate"
REFERENCES = {"median": moments.median, "medoid": moments.medoid, "mean": moments.mean}
DIRECTIONS = ("std", "axis", "ones", "reference")


def swing(round: int, *, period: int = 2, phase: int = 0) -> int:
    """Return +1 in the first half of each period of rounds, -1 in the second.

    Period 2 alternates every round, phase 1 starts with -1, period 1 never alternates.
    """
    if period < 1:
        raise ValueError(f"seesaw needs period >= 1, got {period}")
    # In whole numbers; of an odd period the first half is the longer one, and 1 is always up.
    return 1 if 2 * ((round + phase) % period) < period else -1


def alternating(like: Tensor) -> Tensor:
    """Return (+1, -1, +1, ...), (d,): the sign of each coordinate."""
    signs = torch.ones_like(like)
    signs[1::2] = -1
    return signs


def plank(direction: str, reference: Tensor, std: Tensor) -> Tensor:
    """Return the direction to swing along: ``std`` itself, or another of the same norm."""
    if direction == "std":
        return std
    axis = torch.zeros_like(std)
    axis[std.argmax()] = 1.0
    choices = {"axis": axis, "ones": torch.ones_like(std), "reference": reference}
    if direction not in choices:
        hint = suggest(direction, list(DIRECTIONS))
        raise ValueError(f"unknown seesaw direction {direction!r}; {hint}")
    return torch.linalg.vector_norm(std) * moments.unit(choices[direction])


def temporal(pivot: Tensor, std: Tensor, *, amplitude: float, sign: int, **_: object) -> Tensor:
    """All attackers at pivot + amplitude * std, up in one round and down in the next."""
    return pivot + sign * amplitude * std


def split(
    pivot: Tensor, std: Tensor, *, amplitude: float, sign: int, f: int, **_: object
) -> Tensor:
    """Attackers take turns in one round: even rows above the pivot, odd rows below.

    The two rows are returned once.
    """
    rows = alternating(pivot.new_ones(min(f, 2)))
    return pivot + sign * amplitude * rows[:, None] * std


def coordinate(pivot: Tensor, std: Tensor, *, amplitude: float, sign: int, **_: object) -> Tensor:
    """Even coordinates up, odd coordinates down: large change of direction, small of norm."""
    return pivot + sign * amplitude * alternating(std) * std


def rotation(pivot: Tensor, std: Tensor, *, angle: float, sign: int, **_: object) -> Tensor:
    """Turn the pivot by ``angle`` degrees and keep its norm, to one side, then to the other."""
    forward = moments.unit(pivot)
    side = moments.unit(moments.reject(alternating(std) * std, forward))
    # The other direction is that of the pivot (or the spread is 0): there is no side to turn to.
    if not side.any():
        return pivot
    radians = math.radians(angle)
    norm = torch.linalg.vector_norm(pivot)
    return norm * (math.cos(radians) * forward + sign * math.sin(radians) * side)


MODES: dict[str, Callable[..., Tensor]] = {
    "temporal": temporal,
    "split": split,
    "coordinate": coordinate,
    "rotation": rotation,
}
SWINGS = ("temporal", "rotation")


def seesaw(
    honest: Tensor,
    *,
    n: int,
    f: int,
    mode: str = DEFAULT_MODE,
    reference: str = "median",
    amplitude: float = 1.5,
    direction: str = "std",
    angle: float = 45.0,
    period: int = 2,
    phase: int = 0,
    alternate: bool | None = None,
    ddof: int = 0,
    round: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Swing around a reference of the honest updates: (h, d) -> (f, d). An interpretation.

    Parameters
    ----------
    mode
        With r the reference, v the direction, t the round and a the amplitude:
        "temporal": r + (-1)^t a v; "split": r + a v from even rows and r - a v from odd rows;
        "coordinate": r + a s * v with s = (+1, -1, +1, ...) over the coordinates;
        "rotation": r turned by +-angle towards s * v, norm kept.
    reference
        "median" (coordinate-wise), "medoid" (honest update of least summed distance) or "mean".
    amplitude
        In units of ``direction``; unused by "rotation".
    direction
        "std" (coordinate-wise standard deviation), or of the same Euclidean norm: "axis" (the
        coordinate of largest spread), "ones", "reference".
    angle
        Degrees, of "rotation" only.
    period, phase
        Of the swing over rounds, see ``swing``.
    alternate
        Whether rounds alternate; None means yes for "temporal" and "rotation", no for the others.

    Raises
    ------
    ValueError
        For an unknown mode, reference or direction, or an amplitude or angle that is not finite.

    References
    ----------
    None of these formulas is the authors' (see the module): all are interpretations.
    """
    for value, known, what in ((mode, MODES, "mode"), (reference, REFERENCES, "reference")):
        if value not in known:
            raise ValueError(f"unknown seesaw {what} {value!r}; {suggest(value, list(known))}")
    if not (math.isfinite(amplitude) and math.isfinite(angle)):
        raise ValueError(f"seesaw needs a finite amplitude and angle, got {amplitude}, {angle}")
    swings = mode in SWINGS if alternate is None else alternate
    sign = swing(round, period=period, phase=phase) if swings else 1
    pivot = REFERENCES[reference](honest)
    _, std = moments.moments(honest, ddof=ddof)
    along = plank(direction, pivot, std)
    sent = MODES[mode](pivot, along, amplitude=amplitude, angle=angle, sign=sign, f=f)
    if sent.dim() == 1:
        return moments.repeat(sent, f, honest)
    # "split" alone has a row for each attacker.
    rows = moments.empty_rows(honest, f, out)
    for i, row in enumerate(rows):
        row.copy_(sent[i % len(sent)])
    return rows
