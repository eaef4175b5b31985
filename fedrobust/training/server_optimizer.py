"""The step that an experiment asks for, taken by the server and by every replica of its model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedrobust.experiment.schema import phase
from fedrobust.training import StepState, take_step


def head_size(sizes: tuple[int, ...]) -> int:
    """Return how many of the last coordinates are the last layer: its weight and its bias."""
    return sum(sizes[-2:])


def fixed_in(experiment: Any, round: int, sizes: tuple[int, ...]) -> int:
    """Return how many leading coordinates a round's step leaves alone: partial fine-tuning's."""
    pretrain = experiment.pretrain
    partial = pretrain.rounds and pretrain.finetune == "partial"
    if not partial or phase(experiment, round) == "pretrain":
        return 0
    return sum(sizes) - head_size(sizes)


def server_step(
    experiment: Any,
    model: Tensor,
    aggregate: Tensor,
    state: StepState,
    *,
    round: int,
    shapes: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
) -> tuple[Tensor, StepState]:
    """Take the step that an experiment asks for in a round: server and replicas alike."""
    server = experiment.server
    return take_step(
        model,
        aggregate,
        state,
        optimizer=server.optimizer,
        lr=server.lr,
        momentum=server.momentum,
        schedule=server.schedule,
        warmup=server.warmup,
        shapes=shapes,
        fixed=fixed_in(experiment, round, sizes),
    )
