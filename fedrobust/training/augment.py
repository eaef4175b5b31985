"""Random flips and shifts of training images: a whole batch at once, on the images' device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.spec import SpecError, suggest

PADDING = 4  # pixels on each side, as is usual for 32x32 images
Change = Callable[[Tensor, Tensor], Tensor]


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror left to right those of the images (B, C, H, W) whose draw is below 1/2."""
    mirrored = (draws < 0.5)[:, None, None, None]
    return torch.where(mirrored, images.flip(-1), images)


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Shift each image by up to ``PADDING`` pixels each way, zeros moving in.

    One draw in [0, 1) chooses among the (2 PADDING + 1)^2 places of the window in the padded image.
    """
    count, channels, height, width = images.shape
    places = 2 * PADDING + 1
    place = (draws * places * places).long().clamp_max(places * places - 1)
    padded = F.pad(images, (PADDING,) * 4)
    rows = (place // places)[:, None] + torch.arange(height, device=images.device)
    columns = (place % places)[:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS: dict[str, Change] = {"flip": flip, "crop": crop}
NONE = "none"


def names_of(augment: str) -> tuple[str, ...]:
    """Split ``"flip+crop"``; ``"none"`` is no augmentation.

    Raises
    ------
    SpecError
        For an unknown name.
    """
    names = () if augment == NONE else tuple(augment.split("+"))
    for name in names:
        if name not in AUGMENTATIONS:
            hint = suggest(name, [NONE, *AUGMENTATIONS])
            raise SpecError(f"unknown augmentation {name!r}; {hint}")
    return names


def draw(augment: str, count: int, generator: torch.Generator) -> Tensor:
    """Draw what ``count`` images need: (number of augmentations, count), uniform in [0, 1)."""
    return torch.rand(len(names_of(augment)), count, generator=generator)


def apply(images: Tensor, augment: str, draws: Tensor) -> Tensor:
    """Return augmented images, (B, C, H, W) of any dtype, one column of draws an image."""
    for name, row in zip(names_of(augment), draws.to(images.device), strict=True):
        images = AUGMENTATIONS[name](images, row)
    return images
