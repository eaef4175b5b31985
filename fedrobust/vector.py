"""Named parameters <-> one vector: a module whose parameters are views of a flat tensor."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from fedrobust.model_layers import layers_of


class FlatModel:
    """A module whose trainable parameters and gradients are views of two flat vectors.

    Loading a model is one copy, reading a gradient none. Frozen parameters and buffers (running
    statistics) stay in the module: they are no coordinates of an update. A parameter that two
    layers share is there once.

    Attributes
    ----------
    vector
        All trainable parameters, shape (d,), float32, in the order of ``module.parameters()``.
    gradient
        All gradients, shape (d,); ``backward`` adds into it.
    layers
        Name and shape of each parameter tensor, in the same order: where a layer begins and ends.

    Raises
    ------
    ValueError
        If nothing is trainable, or a trainable parameter is not float32.
    """

    def __init__(self, module: nn.Module) -> None:
        named = trainable(module)
        for name, parameter in named.items():
            if parameter.dtype != torch.float32:
                raise ValueError(f"parameter {name!r} is {parameter.dtype}, needs torch.float32")
        if not named:
            raise ValueError(f"{type(module).__name__} has no trainable parameter")
        parameters = list(named.values())
        self.module = module
        self.layers = layers_of({name: p.shape for name, p in named.items()})
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters]).contiguous()
        self.gradient = torch.zeros_like(self.vector)
        offset = 0
        for p in parameters:
            stop = offset + p.numel()
            # .data, not a new Parameter: whoever holds the module's parameters keeps the same ones.
            p.data = self.vector[offset:stop].view_as(p)
            p.grad = self.gradient[offset:stop].view_as(p)
            offset = stop

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.vector.numel()

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each parameter tensor."""
        return tuple(shape for _, shape in self.layers)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of values in each parameter tensor."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    def load(self, vector: Tensor) -> None:
        """Copy a vector of shape (d,) into the parameters."""
        # Copied into: a new tensor would leave the parameters views of the old one.
        self.vector.copy_(vector)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name, each once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
