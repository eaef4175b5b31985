"""Named parameters <-> one vector: a module whose parameters are views of a flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatModel:
    """A module whose parameters and gradients are views of two flat vectors.

    Loading a model is one copy, reading a gradient none. Buffers (running statistics) stay in the
    module: they are no coordinates of an update.

    Attributes
    ----------
    vector
        All parameters, shape (d,), float32, in the order of ``module.parameters()``.
    gradient
        All gradients, shape (d,); ``backward`` adds into it.
    shapes
        The shape of each parameter tensor, in the same order: where a layer begins and ends.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        self.module = module
        self.shapes = tuple(tuple(p.shape) for p in parameters)
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters]).contiguous()
        self.gradient = torch.zeros_like(self.vector)
        offset = 0
        for p in parameters:
            stop = offset + p.numel()
            p.data = self.vector[offset:stop].view_as(p)
            p.grad = self.gradient[offset:stop].view_as(p)
            offset = stop

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.vector.numel()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values in each parameter tensor."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    def load(self, vector: Tensor) -> None:
        """Copy a vector of shape (d,) into the parameters."""
        self.vector.copy_(vector)
