"""Models as a user writes them, for the engine's benchmark: the built-in sizes, and one that draws.

A run takes them as objects of the user's: nothing in the engine knows their names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UserMlp(nn.Module):
    """One hidden layer of 100: 79,510 parameters on 1x28x28, as the built-in ``mlp``."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(torch.Size(shape).numel(), 100)
        self.out = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        # Mean and deviation of FashionMNIST's pixels, in the model: it is handed them as 0 to 1.
        return self.out(torch.relu(self.hidden((images.flatten(1) - 0.286) / 0.353)))


class UserCnn(nn.Module):
    """Two convolutions with GroupNorm and a hidden layer: 38,378 parameters, as ``cnn``."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape[0], 16, 3, padding=1)
        self.first_norm = nn.GroupNorm(4, 16)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.second_norm = nn.GroupNorm(8, 32)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(32 * 16, 64)
        self.out = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        x = torch.relu(self.first_norm(self.first((images - 0.286) / 0.353)))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.second_norm(self.second(x)))
        return self.out(torch.relu(self.hidden(self.pool(x).flatten(1))))


class UserGate(nn.Module):
    """A network that branches on its values: no stack of clients can be traced through it."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes), twice as large for dark batches."""
        found = self.out(images.flatten(1))
        # `bool` of a tensor is what vmap refuses; `torch.where` here would be traced like any
        # other.
        return 2 * found if bool(images.mean() < 0.5) else found


USER_MODELS = {"user_mlp": UserMlp, "user_cnn": UserCnn, "user_gate": UserGate}
