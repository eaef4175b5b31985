"""The server's step with an aggregate: SGD, an adaptive or a layer-wise step on the flat model.

Where clients keep replicas of the model, every client takes the same step from the same bytes, and
all replicas stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.spec import Spec, SpecError, parameters, resolve, split
from fedrobust.training import fedopt
from fedrobust.training.lalr import lamb, lars, layerwise, step_layers
from fedrobust.training.schedules import lr_at
from fedrobust.training.transforms import Transform
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
    """Step along the velocity: ``v = momentum * v + aggregate``, ``w = w - lr * v``."""
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
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 1e-4,
    clip_low: float = 0.0,
    clip_high: float = 10.0,
) -> tuple[Tensor, StepState]:
    """Layer-wise adaptive step on two moments: ``lalr_step`` on each parameter tensor.

    References
    ----------
    Zhang et al., UAI 2022, released code (lamb.py).
    """
    betas, clip = (beta1, beta2), (clip_low, clip_high)
    transform = lamb(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip=clip)
    return _step_layers(transform, model, aggregate, state, shapes)


def server_lars(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    shapes: Shapes,
    beta: float = 0.9,
    weight_decay: float = 1e-4,
    clip_low: float = 0.0,
    clip_high: float = 10.0,
) -> tuple[Tensor, StepState]:
    """Layer-wise adaptive step on the running mean of the aggregates.

    References
    ----------
    You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017.
    """
    transform = lars(lr=lr, beta=beta, weight_decay=weight_decay, clip=(clip_low, clip_high))
    return _step_layers(transform, model, aggregate, state, shapes)


def server_layerwise(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    shapes: Shapes,
    weight_decay: float = 1e-4,
    clip_low: float = 0.0,
    clip_high: float = 10.0,
) -> tuple[Tensor, StepState]:
    """Layer-wise step along the aggregate itself, without memory."""
    transform = layerwise(lr=lr, weight_decay=weight_decay, clip=(clip_low, clip_high))
    return _step_layers(transform, model, aggregate, state, shapes)


def adagrad(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    beta1: float = 0.0,
    tau: float = 1e-3,
) -> tuple[Tensor, StepState]:
    """FedAdagrad: ``v = v + g^2``, ``w = w - lr m / (sqrt(v) + tau)``, m the running mean of g.

    References
    ----------
    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2; beta1 = 0 as there.
    """
    return _adaptive(fedopt.adagrad_square, model, aggregate, state, lr, beta1, 0.0, tau)


def adam(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Tensor, StepState]:
    """FedAdam: ``v = beta2 v + (1 - beta2) g^2``, ``w = w - lr m / (sqrt(v) + tau)``.

    References
    ----------
    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2: no bias correction.
    """
    return _adaptive(fedopt.adam_square, model, aggregate, state, lr, beta1, beta2, tau)


def yogi(
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Tensor, StepState]:
    """FedYogi: ``v = v - (1 - beta2) g^2 sign(v - g^2)``, ``w = w - lr m / (sqrt(v) + tau)``.

    References
    ----------
    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """
    return _adaptive(fedopt.yogi_square, model, aggregate, state, lr, beta1, beta2, tau)


def _adaptive(
    square: fedopt.Square,
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> tuple[Tensor, StepState]:
    settings = {"beta1": beta1, "beta2": beta2, "tau": tau}
    # lr is applied here: moments do not depend on the schedule.
    way, moments = fedopt.direction(aggregate, state.moments, square, **settings)
    return model - lr * way, StepState(state.step + 1, moments)


def _step_layers(
    transform: Transform, model: Tensor, aggregate: Tensor, state: StepState, shapes: Shapes
) -> tuple[Tensor, StepState]:
    kept = tuple(tuple(layers(moment, shapes)) for moment in state.moments)
    # Nothing is kept before the first step: the transformation makes its own zeros.
    memory = kept if state.step else None
    parts = layers(model, shapes), layers(aggregate, shapes)
    after, memory = step_layers(transform, *parts, memory)
    return _flat(after), StepState(state.step + 1, tuple(_flat(moment) for moment in memory))


SERVER_OPTIMIZERS: dict[str, Callable[..., tuple[Tensor, StepState]]] = {
    "sgd": sgd,
    "lalr": lalr,
    "lars": server_lars,
    "layerwise": server_layerwise,
    "adagrad": adagrad,
    "adam": adam,
    "yogi": yogi,
}
_FORMER_DIRECTIONS = {"lamb": "lalr", "lars": "lars", "gradient": "layerwise"}


def resolve_optimizer(
    spec: Spec,
) -> tuple[Callable[..., tuple[Tensor, StepState]], dict[str, Any]]:
    """Look a server optimizer up; its former setting ``direction`` is now a name of its own.

    Raises
    ------
    SpecError
        If the spec is unknown or does not fit.
    """
    name, given = split(spec)
    if name == "lalr" and given.get("direction") in _FORMER_DIRECTIONS:
        new = _FORMER_DIRECTIONS[given["direction"]]
        raise SpecError(f"server optimizer 'lalr' has no direction any more: name it {new!r}")
    return resolve(SERVER_OPTIMIZERS, spec, kind="server optimizer", supplied=SUPPLIED)


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
        The parameter tensors, in order: the layers of layer-wise steps.
    fixed
        So many leading coordinates stay as they are.

    Raises
    ------
    ValueError
        If the spec is unknown, or the step would make the model non-finite.
    """
    function, settings = resolve_optimizer(optimizer)
    rate = lr_at(state.step, lr=lr, schedule=schedule, warmup=warmup)
    offered: dict[str, Any] = {"momentum": momentum, "shapes": shapes}
    own = {key: value for key, value in offered.items() if key in parameters(function)}
    stepped, state = function(model, aggregate, state, lr=rate, **own, **settings)
    if fixed:
        # After the step, and on the model alone: moments are kept of all coordinates.
        stepped = torch.cat([model[:fixed], stepped[fixed:]])
    if not bool(torch.isfinite(stepped).all()):
        raise ValueError("the step would make the model non-finite")
    return stepped, state


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
