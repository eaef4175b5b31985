"""The optimizers of local training: one table for federated clients and ensemble members."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust.spec import SpecError, suggest


@dataclass(frozen=True)
class Optimizer:
    """One of PyTorch's optimizers, and which settings it has.

    All of them work coordinate by coordinate, so that one flat vector, or one row a client, can be
    stepped instead of named tensors.
    """

    build: Callable[..., torch.optim.Optimizer]
    momentum: bool = False
    weight_decay: bool = True
    needs_momentum: bool = False


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(torch.optim.SGD, momentum=True),
    "sgd_m": Optimizer(torch.optim.SGD, momentum=True),
    "sgd_n": Optimizer(partial(torch.optim.SGD, nesterov=True), momentum=True, needs_momentum=True),
    "adam": Optimizer(torch.optim.Adam),
    "adamw": Optimizer(torch.optim.AdamW),
    "nadam": Optimizer(torch.optim.NAdam),
    "adagrad": Optimizer(torch.optim.Adagrad),
    "asgd": Optimizer(torch.optim.ASGD),
    "rprop": Optimizer(torch.optim.Rprop, weight_decay=False),
    "rmsprop": Optimizer(torch.optim.RMSprop, momentum=True),
}


def lacking_momentum(prefix: str, name: str) -> str:
    """Return the sentence for a momentum that an optimizer would not read."""
    return (
        f"{prefix}momentum is not honoured by {prefix}optimizer {name!r}, which has none: leave it"
        " out"
    )


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Build an optimizer by name; momentum and weight decay go where they exist.

    Raises
    ------
    SpecError
        If the name is unknown, or Nesterov's step has no momentum.
    """
    if name not in OPTIMIZERS:
        raise SpecError(f"unknown optimizer {name!r}; {suggest(name, list(OPTIMIZERS))}")
    kind = OPTIMIZERS[name]
    if kind.needs_momentum and not momentum > 0:
        raise SpecError(f"{name} needs a positive momentum, got {momentum}")
    settings: dict[str, Any] = {"lr": lr}
    if kind.momentum:
        settings["momentum"] = momentum
    if kind.weight_decay:
        settings["weight_decay"] = weight_decay
    return kind.build(parameters, **settings)


def optimizer_over(
    vector: Tensor,
    gradient: Tensor,
    name: str,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return an optimizer that steps a vector (..., d) in place along ``gradient``."""
    flat = nn.Parameter(vector)
    # In place: the step reads the gradient where backward left it, and moves the vector itself.
    flat.data, flat.grad = vector, gradient
    return build_optimizer(name, [flat], lr=lr, momentum=momentum, weight_decay=weight_decay)
