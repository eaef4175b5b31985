"""What is done with an aggregate: one step of SGD or LALR on the flat model, and its memory.

The server takes this step; where clients keep replicas of the model, so does every client, with
the same function on the same bytes, and all of them stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.spec import Spec, resolve
from fedrobust.training.lalr import LalrState, lalr_step, lr_at
from fedrobust.training.update_codec import layers

Shapes = Sequence[tuple[int, ...]]
SUPPLIED = ("lr", "momentum", "shapes")


@dataclass(frozen=True, eq=False)
class StepState:
    """How many steps were taken, and the moments (d,) that the next one needs."""

    step: int = 0
    moments: tuple[Tensor, ...] = ()


def sgd(
    model: Tensor, aggregate: Tensor, state: StepState, *, lr: float, momentum: float
) -> tuple[Tensor, StepState]:
    """V <- momentum v + aggregate, w <- w - lr v."""
    velocity = aggregate
    if state.moments:
        velocity = momentum * state.moments[0] + velocity
    return model - lr * velocity, StepState(state.step + 1, (velocity,))


def lalr(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    shapes: Shapes,
    direction: str = "lamb",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 1e-4,
    clip_low: float = 0.0,
    clip_high: float = 10.0,
) -> tuple[Tensor, StepState]:
    """Layer-wise adaptive step: ``lalr_step`` on each parameter tensor; "lars" or "lamb" form.

    References
    ----------
    Zhang et al., UAI 2022, released code (lamb.py).
    """
    kept = [tuple(layers(moment, shapes)) for moment in state.moments]
    means, squares = [*kept, (), ()][:2]
    after, memory = lalr_step(
        layers(model, shapes),
        layers(aggregate, shapes),
        LalrState(state.step, means, squares) if state.step else None,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        clip=(clip_low, clip_high),
        direction=direction,
    )
    moments = tuple(_flat(part) for part in (memory.means, memory.squares) if part)
    return _flat(after), StepState(state.step + 1, moments)


SERVER_OPTIMIZERS: dict[str, Callable[..., tuple[Tensor, StepState]]] = {"sgd": sgd, "lalr": lalr}


def take_step(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    optimizer: Spec,
    lr: float,
    momentum: float,
    schedule: Spec,
    warmup: int,
    shapes: Shapes,
    fixed: int = 0,
) -> tuple[Tensor, StepState]:
    """Take one step of an optimizer at the rate that the schedule gives for this step.

    Parameters
    ----------
    model, aggregate
        (d,); neither is changed.
    state
        What the step before returned; ``StepState()`` at first.
    optimizer
        A spec of ``SERVER_OPTIMIZERS``.
    lr, schedule, warmup
        See ``lr_at``; steps are counted, so a round that keeps the model does not count.
    momentum
        Of "sgd".
    shapes
        The parameter tensors, in order: LALR's layers.
    fixed
        So many leading coordinates stay as they are.

    Raises
    ------
    ValueError
        If the spec is unknown, or the step would make the model non-finite.
    """
    function, settings = resolve(
        SERVER_OPTIMIZERS, optimizer, kind="server optimizer", supplied=SUPPLIED
    )
    rate = lr_at(state.step, lr=lr, schedule=schedule, warmup=warmup)
    own: dict[str, Any] = {"momentum": momentum} if function is sgd else {"shapes": shapes}
    stepped, state = function(model, aggregate, state, lr=rate, **own, **settings)
    if fixed:
        stepped = torch.cat([model[:fixed], stepped[fixed:]])
    if not bool(torch.isfinite(stepped).all()):
        raise ValueError("the step would make the model non-finite")
    return stepped, state


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
