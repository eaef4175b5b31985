"""Small networks of different kinds for CPUs: 2 to 5 thousand 32x32 images a second on one core.

They halve the image at once, and have no running statistics, so that they can also be averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


def _norm(channels: int) -> nn.Module:
    # Groups of 8 channels each.
    return nn.GroupNorm(channels // 8, channels)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Add the body's output."""
        return x + self.body(x)


class Dense(nn.Module):
    """[x, body(x)] along the channels."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Append the body's output."""
        return torch.cat([x, self.body(x)], 1)


def _head(channels: int, classes: int) -> list[nn.Module]:
    # To 4x4 whatever the image's size, so that the last layer fits.
    return [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes)]


def small_plain(shape: Shape, classes: int) -> nn.Module:
    """Three 3x3 convolutions without normalisation."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(48, 64, 3, 1, 1), nn.ReLU(),
        *_head(64, classes),
    )  # fmt: skip


def small_vgg(shape: Shape, classes: int) -> nn.Module:
    """Four 3x3 convolutions with GroupNorm, in two stages."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, 2, 1), _norm(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, 2, 1), _norm(48), nn.ReLU(),
        nn.Conv2d(48, 64, 3, 1, 1), _norm(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1, 1), _norm(64), nn.ReLU(),
        *_head(64, classes),
    )  # fmt: skip


def small_resnet(shape: Shape, classes: int) -> nn.Module:
    """A strided stem and two residual blocks with GroupNorm."""

    def block(c: int) -> nn.Module:
        return Residual(_norm(c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1),
                        _norm(c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1))  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(shape[0], 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1),
        block(48), block(48), _norm(48), nn.ReLU(), *_head(48, classes),
    )  # fmt: skip


def small_wide(shape: Shape, classes: int) -> nn.Module:
    """Two 5x5 convolutions without normalisation."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, 1, 2), nn.ReLU(),
        *_head(64, classes),
    )  # fmt: skip


def small_mobile(shape: Shape, classes: int) -> nn.Module:
    """Inverted residuals: expand, depthwise 3x3, project."""

    def inverted(c: int) -> nn.Module:
        return Residual(nn.Conv2d(c, 3 * c, 1), _norm(3 * c), nn.ReLU6(),
                        nn.Conv2d(3 * c, 3 * c, 3, 1, 1, groups=3 * c), nn.ReLU6(),
                        nn.Conv2d(3 * c, c, 1))  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(shape[0], 24, 3, 2, 1), nn.ReLU6(), nn.Conv2d(24, 40, 3, 2, 1),
        inverted(40), inverted(40), _norm(40), nn.ReLU6(), *_head(40, classes),
    )  # fmt: skip


def small_dense(shape: Shape, classes: int) -> nn.Module:
    """A strided stem and three densely connected 3x3 convolutions."""

    def grow(c: int) -> nn.Module:
        return Dense(_norm(c), nn.ReLU(), nn.Conv2d(c, 16, 3, 1, 1))

    return nn.Sequential(
        nn.Conv2d(shape[0], 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1),
        # Each adds 16 channels: 32, 48, 64, 80.
        grow(32), grow(48), grow(64), _norm(80), nn.ReLU(), *_head(80, classes),
    )  # fmt: skip


def small_patch(shape: Shape, classes: int) -> nn.Module:
    """4x4 patches, then depthwise and pointwise convolutions in turn (after ConvMixer)."""

    def mix(c: int) -> list[nn.Module]:
        return [Residual(nn.Conv2d(c, c, 5, 1, 2, groups=c), nn.GELU(), _norm(c)),
                nn.Conv2d(c, c, 1), nn.GELU(), _norm(c)]  # fmt: skip

    return nn.Sequential(
        # The stride is the kernel's width: patches do not overlap.
        nn.Conv2d(shape[0], 64, 4, 4), nn.GELU(), _norm(64),
        *mix(64), *mix(64), *_head(64, classes),
    )  # fmt: skip


SMALL = {
    "small_plain": small_plain,
    "small_vgg": small_vgg,
    "small_resnet": small_resnet,
    "small_wide": small_wide,
    "small_mobile": small_mobile,
    "small_dense": small_dense,
    "small_patch": small_patch,
}
