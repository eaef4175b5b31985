"""Learning rates over time, in closed form: no state, so that any step can be asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedrobust.spec import Spec, resolve


def constant(step: int, *, lr: float) -> float:
    """Keep the learning rate."""
    return lr


def multistep(step: int, *, lr: float, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """Multiply by ``gamma`` at every milestone: DAT's schedule, milestones after the warm-up."""
    return lr * gamma ** sum(step >= milestone for milestone in milestones)


def cosine(step: int, *, lr: float, steps: int, final: float = 0.0) -> float:
    """Fall from ``lr`` to ``final`` over half a cosine of ``steps`` steps, then stay there."""
    done = min(step / steps, 1.0)
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
}


def lr_at(step: int, *, lr: float, schedule: Spec = "constant", warmup: int = 0) -> float:
    """Return the learning rate of iteration ``step``, counted from 0.

    Parameters
    ----------
    step
        The iteration.
    lr
        The base rate, reached at the end of the warm-up.
    schedule
        A name of ``SCHEDULES`` or a table with its parameters, in iterations after the warm-up.
    warmup
        Iterations of linear warm-up: iteration k has ``lr * (k + 1) / warmup``.

    Raises
    ------
    ValueError
        If the step or the warm-up is negative, or the schedule is unknown.
    """
    if step < 0 or warmup < 0:
        raise ValueError(f"lr_at needs step and warmup of at least 0, got {step} and {warmup}")
    function, settings = resolve(SCHEDULES, schedule, kind="schedule", supplied=("lr",))
    if step < warmup:
        return lr * (step + 1) / warmup
    return function(step - warmup, lr=lr, **settings)
