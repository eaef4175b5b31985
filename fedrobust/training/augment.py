"""Random changes of training images: a whole batch at once, on the images' device.

What is random is drawn first, on the generator's device, one column an image: the same views come
out wherever the images are, and however many clients' images are changed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.evaluation import pixels
from fedrobust.spec import SpecError, suggest

PADDING = 4  # pixels on each side, as is usual for 32x32 images
PLACES = 2 * PADDING + 1
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augmentation:
    """One change of images.

    Attributes
    ----------
    draw
        (count, generator) -> (draws, count): what ``count`` images need.
    apply
        (images (B, C, H, W), draws (draws, B)) -> images of that shape; uint8 stays uint8 unless
        pixels are interpolated, which gives float32 in [0, 1].
    draws
        Random numbers an image.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror left to right those of the images (B, C, H, W) whose draw (1, B) is below 1/2."""
    mirrored = (draws[0] < 0.5)[:, None, None, None]
    return torch.where(mirrored, images.flip(-1), images)


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Shift each image by up to ``PADDING`` pixels each way, zeros moving in.

    One draw in [0, 1) chooses among the (2 PADDING + 1)^2 places of the window in the padded image.
    """
    # For safety: with another padding the largest draw might round to the place behind the last.
    place = (draws[0] * PLACES * PLACES).long().clamp_max(PLACES * PLACES - 1)
    return _window(images, place // PLACES, place % PLACES)


def light(images: Tensor, draws: Tensor) -> Tensor:
    """Flip and shift, as ``flip`` and ``crop``, with a draw each for row and column: (3, B)."""
    return _window(flip(images, draws[:1]), draws[1].long(), draws[2].long())


def paper(images: Tensor, draws: Tensor) -> Tensor:
    """Flip, then cut out an area of 0.08 to 1 with a ratio of 3/4 to 4/3, bilinear: (5, B) draws.

    The transform of the released code of Andreina et al. (AAAI 2025) with torchvision's defaults;
    a crop that would leave the image is cut to it, where torchvision draws again.
    """
    seen = pixels(images)

    def between(row: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[row]

    area, ratio = between(0, *AREA), between(1, *(math.log(value) for value in RATIO)).exp()
    wide = (area * ratio).sqrt().clamp(max=1)
    high = (area / ratio).sqrt().clamp(max=1)
    across, down = (1 - wide) * between(2, -1, 1), (1 - high) * between(3, -1, 1)
    zero = torch.zeros_like(area)
    affine = torch.stack([torch.stack([wide, zero, across], 1),
                          torch.stack([zero, high, down], 1)], 1)  # fmt: skip
    # align_corners=False: positions go by the edges of the image, not by its outer pixels' centres.
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(
        flip(seen, draws[4:]), grid.to(seen), padding_mode="border", align_corners=False
    )


def _uniform(rows: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, generator: torch.rand(rows, count, generator=generator)


def _draw_light(count: int, generator: torch.Generator) -> Tensor:
    turn = torch.rand(1, count, generator=generator)
    # As floats, to be rows of one matrix of draws; small whole numbers are exact.
    return torch.cat([turn, torch.randint(PLACES, (2, count), generator=generator).float()])


AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": Augmentation(_uniform(1), flip, 1),
    "crop": Augmentation(_uniform(1), crop, 1),
    "light": Augmentation(_draw_light, light, 3),
    "paper": Augmentation(_uniform(5), paper, 5),
}
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
    """Draw what ``count`` images need: (draws, count)."""
    rows = [AUGMENTATIONS[name].draw(count, generator) for name in names_of(augment)]
    return torch.cat(rows) if rows else torch.empty(0, count)


def apply(images: Tensor, augment: str, draws: Tensor) -> Tensor:
    """Return augmented images, (B, C, H, W), one column of draws an image."""
    kinds = [AUGMENTATIONS[name] for name in names_of(augment)]
    parts = draws.to(images.device).split([kind.draws for kind in kinds])
    for kind, rows in zip(kinds, parts, strict=True):
        images = kind.apply(images, rows)
    return images


def _window(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Cut (H, W) out of the padded images, each at its own place (B,) in 0..2 PADDING."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]
