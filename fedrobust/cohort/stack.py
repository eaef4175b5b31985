"""The parameters of many clients of one architecture, as one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedrobust.cohort.schedule import whole
from fedrobust.vector import FlatModel, trainable


class Stack:
    """One row of parameters and one of gradients a client; one module computes with all of them.

    Attributes
    ----------
    vector, gradient
        (m, d), rows in the order of ``module.parameters()``.
    """

    def __init__(self, model: FlatModel, start: Tensor, clients: int) -> None:
        self._module = model.module.train()
        named = trainable(model.module)  # frozen parameters stay in the module, one for all
        self._names = list(named)
        self._shapes = [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        self._buffers = {
            name: buffer.expand(clients, *buffer.shape).clone()
            for name, buffer in model.module.named_buffers()
        }
        self.vector = start.expand(clients, -1).clone()
        self.gradient = torch.zeros_like(self.vector)

    def leaves(self, places: Sequence[int]) -> list[Tensor]:
        """Return the parameters of some clients, one (k, ...) tensor a name, ready for autograd."""
        rows = self._rows(self.vector, places)
        parts = zip(rows.split(self._sizes, dim=1), self._shapes, strict=True)
        # New leaves for each pass: keep() puts their gradients into the rows.
        return [part.view(len(rows), *shape).detach().requires_grad_() for part, shape in parts]

    def keep(self, places: Sequence[int], gradients: Sequence[Tensor]) -> None:
        """Put gradients of ``leaves`` into their clients' rows."""
        parts = [g.reshape(len(places), -1) for g in gradients]
        if whole(places):
            torch.cat(parts, dim=1, out=self.gradient[: len(places)])
        else:
            self.gradient[list(places)] = torch.cat(parts, dim=1)

    def networks(self, leaves: Sequence[Tensor]) -> StackedNetworks:
        """Return the clients' networks with these parameters, in the order of ``leaves``."""
        buffers = {name: b[: len(leaves[0])] for name, b in self._buffers.items()}
        return StackedNetworks(self._module, tuple(self._names), tuple(leaves), buffers)

    @staticmethod
    def _rows(matrix: Tensor, places: Sequence[int]) -> Tensor:
        # A slice is a view; a list of places copies the rows.
        return matrix[: len(places)] if whole(places) else matrix[list(places)]


@dataclass(frozen=True)
class StackedNetworks:
    """The networks of k clients; see ``fedrobust.training.losses.Networks``.

    Attributes
    ----------
    names, leaves
        Parameters by name, one (k, ...) tensor each.
    buffers
        The module's, one (k, ...) tensor each. What a forward pass writes into them is thrown away.
    """

    module: nn.Module
    names: tuple[str, ...]
    leaves: tuple[Tensor, ...]
    buffers: dict[str, Tensor]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return outputs (k, B, ...) for inputs (k, B, ...), each client's by its own network."""
        # A pass in training mode writes running statistics: each starts from the module's own.
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}

        def one(own: tuple[Tensor, ...], own_buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            tensors = dict(zip(self.names, own, strict=True)) | own_buffers
            return torch.func.functional_call(self.module, tensors, (x,))

        return torch.func.vmap(one)(self.leaves, buffers, inputs)

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Return ``function(model, *one client's part of the tensors)`` for all clients."""
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}

        def one(own: tuple[Tensor, ...], own_buffers: dict[str, Tensor], *parts: Tensor) -> Tensor:
            named = dict(zip(self.names, own, strict=True)) | own_buffers
            return function(lambda x: torch.func.functional_call(self.module, named, (x,)), *parts)

        return torch.func.vmap(one)(self.leaves, buffers, *tensors)

    def detached(self) -> StackedNetworks:
        """Return the same networks with parameters that collect no gradient."""
        return replace(self, leaves=tuple(leaf.detach() for leaf in self.leaves))
