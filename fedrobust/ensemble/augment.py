"""Views of a batch of training images, drawn from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def none(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images as they are."""
    return images


def light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip with probability 1/2, pad by 4 and crop back, each image by its own draw."""
    count, _, height, width = images.shape
    padded = F.pad(_flipped(images, generator), (4, 4, 4, 4))
    rows = torch.randint(9, (count,), generator=generator)[:, None] + torch.arange(height)
    columns = torch.randint(9, (count,), generator=generator)[:, None] + torch.arange(width)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def paper(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, then a RandomResizedCrop of area 0.08 to 1 and ratio 3/4 to 4/3, bilinear.

    The released code's transform with torchvision's defaults; a crop that would leave the image is
    cut to it, where torchvision draws again.
    """
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    area, ratio = draw(0.08, 1.0), draw(math.log(3 / 4), math.log(4 / 3)).exp()
    wide = (area * ratio).sqrt().clamp(max=1)
    high = (area / ratio).sqrt().clamp(max=1)
    across, down = (1 - wide) * draw(-1, 1), (1 - high) * draw(-1, 1)
    zero = torch.zeros(count)
    affine = torch.stack([torch.stack([wide, zero, across], 1),
                          torch.stack([zero, high, down], 1)], 1)  # fmt: skip
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(
        _flipped(images, generator), grid.to(images), padding_mode="border", align_corners=False
    )


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    turn = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(turn[:, None, None, None], images.flip(3), images)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": none,
    "light": light,
    "paper": paper,
}
