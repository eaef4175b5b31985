"""Fake clients without data that pull the model to one of their own (MPAF)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.attacks.moments import repeat
from fedrobust.attacks.probe import draws, normal
from fedrobust.attacks.record import Crafted
from fedrobust.model_layers import Layers, columns
from fedrobust.ranges import real

State = dict[str, Tensor]


def mpaf(
    honest: Tensor,
    *,
    n: int,
    f: int,
    model: Tensor,
    factor: float = 1e6,
    std: float | None = None,
    round: int = 0,
    layers: Layers | None = None,
    generator: torch.Generator | None = None,
    state: State | None = None,
) -> Crafted:
    """Pull the global model, in each round, towards one bad model that was drawn once.

    The attackers need no data and no honest update: what they send is the way from the global model
    to theirs, made long. Against the plain mean the model ends there; a rule that bounds lengths
    leaves a push of the greatest length that it allows, in the same direction in all rounds.

    Parameters
    ----------
    model
        The global model (d,): a run hands it in.
    factor
        lambda, positive: how many times the way.
    std
        Of the bad model's values, normal, at least 0; None takes, tensor by tensor where the layers
        are known, that of the global model when it is first seen. The paper's is any model with a
        low accuracy, drawn at random; how it is drawn is an interpretation.
    layers
        (name, shape) of each tensor, as a run hands them in.

    Raises
    ------
    ValueError
        For settings out of range, or without a global model.

    References
    ----------
    Cao, Gong, MPAF: Model Poisoning Attacks to Federated Learning based on Fake Clients, CVPR
    Workshops 2022 (arXiv 2203.08669), section 3: g = lambda (w' - w), lambda = 1e6.
    """
    real(factor, "mpaf", "factor", above=0)
    if std is not None:
        real(std, "mpaf", "std", low=0)
    current = model.double()
    if state is None:
        source = draws(generator, honest, "mpaf", round)
        noise = normal((1, len(current)), current, source)[0]
        state = {"base": (noise * _spread(current, std, layers)).float().cpu()}
    base = state["base"].to(current)
    return Crafted(repeat(factor * (current - base), f, honest), state)


def _spread(model: Tensor, std: float | None, layers: Layers | None) -> Tensor:
    """Return the standard deviation of each value of the bad model, (d,)."""
    if std is not None:
        return torch.full_like(model, std)
    spread = torch.empty_like(model)
    for where in [slice(0, len(model))] if layers is None else columns(layers):
        if where.start < where.stop:
            spread[where] = model[where].std(correction=0)
    return spread
