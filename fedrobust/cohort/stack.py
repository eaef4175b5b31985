"""The parameters of many clients of one architecture, as one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.vector import FlatModel


class Stack:
    """One row of parameters and one of gradients a client; one module computes with all of them.

    Attributes
    ----------
    vector, gradient
        (m, d), rows in the order of ``module.parameters()``.
    """

    def __init__(self, model: FlatModel, start: Tensor, clients: int) -> None:
        self._module = model.module.train()
        named = list(model.module.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
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
        return [part.view(len(rows), *shape).detach().requires_grad_() for part, shape in parts]

    def keep(self, places: Sequence[int], gradients: Sequence[Tensor]) -> None:
        """Put gradients of ``leaves`` into their clients' rows."""
        flat = torch.cat([g.reshape(len(places), -1) for g in gradients], dim=1)
        if _whole(places):
            self.gradient[: len(places)] = flat
        else:
            self.gradient[list(places)] = flat

    def forward(self, leaves: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return logits (k, B, classes) of images (k, B, ...), each client's by its own network.

        Running statistics of BatchNorm are thrown away: each call starts from the module's.
        """
        buffers = {name: b[: len(images)].clone() for name, b in self._buffers.items()}

        def one(own: tuple[Tensor, ...], own_buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            tensors = dict(zip(self._names, own, strict=True)) | own_buffers
            return torch.func.functional_call(self._module, tensors, (x,))

        return torch.func.vmap(one)(tuple(leaves), buffers, images)

    def call(self, own: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return the logits of one client inside a ``vmap`` of the caller's."""
        tensors = dict(zip(self._names, own, strict=True))
        return torch.func.functional_call(self._module, tensors, (images,))

    @staticmethod
    def _rows(matrix: Tensor, places: Sequence[int]) -> Tensor:
        return matrix[: len(places)] if _whole(places) else matrix[list(places)]


def _whole(places: Sequence[int]) -> bool:
    """Whether the places are the first ones, without a gap."""
    return list(places) == list(range(len(places)))
