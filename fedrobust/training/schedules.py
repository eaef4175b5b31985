"""Learning rates over time: one table for the server, for clients and for ensemble members.

A schedule is a closed form of the number of the step, so that any step can be asked for. What a
step is, the caller says: an iteration of the server, a round, or a mini-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedrobust.spec import Spec, resolve

SUPPLIED = ("lr",)
SUPPLIED_WITH_LOSSES = ("lr", "losses")  # where the losses of past epochs are known


def constant(step: int, *, lr: float) -> float:
    """Keep the learning rate."""
    return lr


def multistep(step: int, *, lr: float, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """Multiply by ``gamma`` at every milestone: DAT's schedule, milestones after the warm-up."""
    return lr * gamma ** sum(step >= milestone for milestone in milestones)


def cosine(step: int, *, lr: float, steps: float, final: float = 0.0) -> float:
    """Fall from ``lr`` to ``final`` over half a cosine of ``steps`` steps, then stay there."""
    done = min(step / steps, 1.0)
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * done))


def decay(step: int, *, lr: float, every: int, gamma: float = 0.1) -> float:
    """Multiply by ``gamma`` after each ``every`` steps."""
    return lr * gamma ** (step // every)


def exponential(step: int, *, lr: float, gamma: float = 0.95, every: int = 1) -> float:
    """Multiply by ``gamma`` after each step, or after each ``every`` steps."""
    return lr * gamma ** (step // every)


def cyclic(step: int, *, lr: float, steps: int, factor: float = 10.0) -> float:
    """Rise from ``lr`` to ``factor * lr`` and fall back, a triangle of ``steps`` steps, again."""
    # A triangle of one step would have no place for its peak.
    place = step / max(steps, 2) % 1
    return lr * (1 + (factor - 1) * (1 - abs(2 * place - 1)))


def plateau(
    step: int,
    *,
    lr: float,
    losses: Sequence[float],
    patience: int = 10,
    threshold: float = 1e-4,
    gamma: float = 0.1,
) -> float:
    """Multiply by ``gamma`` when more than ``patience`` epochs brought no lower loss.

    Parameters
    ----------
    losses
        Mean training loss of each epoch so far: known to ensemble members only.
    threshold
        A loss is lower if it is below (1 - threshold) times the best one.
    """
    return lr * gamma ** _cuts(losses, patience, threshold)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
    "step": decay,
    "exponential": exponential,
    "cyclic": cyclic,
    "plateau": plateau,
}


def lr_at(
    step: int,
    *,
    lr: float,
    schedule: Spec = "constant",
    warmup: int = 0,
    losses: Sequence[float] | None = None,
) -> float:
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
    losses
        Mean training loss of each epoch so far, where it is known; "plateau" needs it.

    Raises
    ------
    ValueError
        If the step or the warm-up is negative, or the schedule is unknown or does not fit.
    """
    if step < 0 or warmup < 0:
        raise ValueError(f"lr_at needs step and warmup of at least 0, got {step} and {warmup}")
    supplied = SUPPLIED if losses is None else SUPPLIED_WITH_LOSSES
    function, settings = resolve(SCHEDULES, schedule, kind="schedule", supplied=supplied)
    if step < warmup:
        return lr * (step + 1) / warmup
    # A plateau without known losses needs them in its spec: resolve has asked for them.
    if function is plateau and losses is not None:
        settings = {**settings, "losses": losses}
    return function(step - warmup, lr=lr, **settings)


def _cuts(losses: Sequence[float], patience: int, threshold: float) -> int:
    """Count the cuts of ReduceLROnPlateau after these losses."""
    best, waiting, cuts = math.inf, 0, 0
    for loss in losses:
        # A NaN is never lower, and so counts as an epoch without progress.
        if loss < best * (1 - threshold):
            best, waiting = loss, 0
        else:
            waiting += 1
        if waiting > patience:
            cuts, waiting = cuts + 1, 0
    return cuts
