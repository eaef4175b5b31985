"""What local training minimises: any function of a model and a mini-batch.

A loss that is also given in a second form, for many clients at once, can be trained as a stack; the
engine that stacks them knows nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # module, inputs (B, ...), targets -> scalar
IGNORED = -1  # the label of a row that counts for nothing


class Networks(Protocol):
    """The networks of m clients of one architecture, each with parameters of its own."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return every client's outputs (m, B, ...) for its own inputs (m, B, ...)."""

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Return ``function(model, *one client's part of the tensors)`` for all clients, (m, ...).

        It is traced once (``torch.func.vmap``): no branch on values, no random draw.
        """

    def detached(self) -> Networks:
        """Return the same networks with parameters that collect no gradient."""


# networks, inputs (m, B, ...), targets (m, B, ...), one generator or None a client -> losses (m,)
Stacked = Callable[[Networks, Tensor, Tensor, Sequence[torch.Generator | None]], Tensor]


@dataclass(frozen=True)
class StackableLoss:
    """A loss in two forms: of one client, and of a stack of clients.

    Attributes
    ----------
    alone
        (module, inputs, targets) -> scalar.
    stacked
        The same for m clients at once, (m,), equal to ``alone`` up to float error.
    settings
        What makes two losses one: clients whose losses have equal settings share a stack.
    generator
        The client's own source of randomness, which ``alone`` holds already.
    pads
        A row labelled ``IGNORED`` changes nothing: mini-batches of unequal size can be filled up.
    evaluates
        The loss calls the model in eval mode too, where BatchNorm needs running statistics.
    """

    alone: Loss
    stacked: Stacked
    settings: Hashable
    generator: torch.Generator | None = None
    pads: bool = False
    evaluates: bool = False

    def __call__(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one client, ready for backward."""
        return self.alone(module, inputs, targets)


def stackable(loss: Loss) -> StackableLoss:
    """Give a loss its second form by tracing it.

    It must draw nothing at random and must not branch on values, as ``torch.func.vmap`` asks.
    """

    def stacked(networks: Networks, inputs: Tensor, targets: Tensor, sources: Any) -> Tensor:
        return networks.each(loss, inputs, targets)

    return StackableLoss(loss, stacked, loss)


def _mean_cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(images), labels)


def _stacked_cross_entropy(
    networks: Networks, images: Tensor, labels: Tensor, sources: Any
) -> Tensor:
    each = F.cross_entropy(
        networks(images).flatten(0, 1),
        labels.flatten(),
        reduction="none",
        ignore_index=IGNORED,
    )
    return each.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)


#: Mean cross-entropy on clean images.
cross_entropy = StackableLoss(
    _mean_cross_entropy, _stacked_cross_entropy, "cross_entropy", pads=True
)
