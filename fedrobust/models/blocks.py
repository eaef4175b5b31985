"""How paths of a network meet: summed, concatenated, gated, or both summed and appended."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """The sum of several branches of one input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branches give."""
        first, *others = self.branches
        total = first(x)
        for branch in others:
            # Not in place: an Identity returns x itself, which the other branches need.
            total = total + branch(x)
        return total


class Cat(nn.Module):
    """Several branches of one input side by side along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate what the branches give."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """Squeeze and excitation: each channel times a weight in [0, 1] from the global averages."""

    def __init__(self, channels: int, hidden: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            # 1x1 convolutions on a 1x1 image: linear layers that need no reshaping.
            nn.Conv2d(channels, hidden, 1),
            act(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels."""
        return x * self.weigh(x)


class Chain(nn.Module):
    """Two stages in a row and a root over both of their outputs (deep layer aggregation)."""

    def __init__(self, left: nn.Module, right: nn.Module, root: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.root = left, right, root

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate the first stage's output and the second's."""
        first = self.left(x)
        return self.root(torch.cat([first, self.right(first)], 1))


class DualPath(nn.Module):
    """The first ``width`` channels are summed, the others appended (dual path)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.shortcut, self.width = body, shortcut, width

    def forward(self, x: Tensor) -> Tensor:
        """Join the two paths."""
        out, kept, w = self.body(x), self.shortcut(x), self.width
        return torch.cat([kept[:, :w] + out[:, :w], kept[:, w:], out[:, w:]], 1).relu()


class PreAct(nn.Module):
    """Body of the activated input, plus the input itself, or its activated projection."""

    def __init__(self, before: nn.Module, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.before, self.body, self.shortcut = before, body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Activate once, for the body and a projection."""
        active = self.before(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))
