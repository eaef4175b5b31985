"""What a transfer attack sees: surrogates, and the gradients that it takes through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.adversarial.frozen import Model, input_gradient
from fedrobust.adversarial.images import as_images, as_labels, column

_FLOOR = 1e-12


@dataclass(frozen=True)
class View:
    """What an attack sees: surrogates, clean images, labels, and how gradients are taken."""

    models: tuple[Model, ...]
    x: Tensor
    y: Tensor
    eps: float
    diversify: Callable[[Tensor], Tensor]
    smooth: Callable[[Tensor], Tensor]

    def gradient(self, point: Tensor, only: Model | None = None) -> Tensor:
        """Gradient of the cross-entropy of the summed logits, or of one surrogate's."""
        models = self.models if only is None else (only,)

        def loss(z: Tensor) -> Tensor:
            seen = self.diversify(z)
            logits = torch.stack([model(seen) for model in models]).sum(0)
            # Summed later, not averaged: an image's gradient must not depend on its batch.
            return F.cross_entropy(logits, self.y, reduction="none")

        return self.smooth(input_gradient(loss, point))

    def project(self, point: Tensor) -> Tensor:
        """Into the ball around the clean images, then into [0, 1]."""
        # The clean images are in [0, 1], so the second clamp cannot leave the ball.
        return point.clamp(self.x - self.eps, self.x + self.eps).clamp(0, 1)


def look(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    eps: float,
    diversity: float,
    smoothing: int,
    generator: torch.Generator | None,
) -> View:
    """Check an attack's input and settings; one model alone counts as a group of one."""
    # A Sequential can be iterated too, over its layers: only a ModuleList is a group of models.
    alone = isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)
    group = (models,) if alone or not hasattr(models, "__iter__") else tuple(models)  # type: ignore[arg-type]
    if not group:
        raise ValueError("a transfer attack needs at least 1 surrogate, got 0")
    images = as_images(x, y)
    return View(
        group,
        images,
        as_labels(y),
        eps,
        _diversify(diversity, generator or torch.Generator().manual_seed(0)),
        _smooth(smoothing, images),
    )


def _diversify(probability: float, source: torch.Generator) -> Callable[[Tensor], Tensor]:
    if not 0 <= probability <= 1:
        raise ValueError(f"diversity needs a probability, got {probability}")

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=source, device=source.device))

    def shrink(z: Tensor) -> Tensor:
        # rand is below 1: at probability 1 every input is shrunk.
        if probability <= float(torch.rand((), generator=source, device=source.device)):
            return z
        height, width = z.shape[-2:]
        # draw(k) is one of 0 .. k - 1: heights from 90 % of the image, rounded up, to all of it.
        rows = height - draw(height - math.ceil(0.9 * height) + 1)
        columns = max(1, round(width * rows / height))
        top, left = draw(height - rows + 1), draw(width - columns + 1)
        small = F.interpolate(z, (rows, columns), mode="bilinear", align_corners=False)
        return F.pad(small, (left, width - columns - left, top, height - rows - top))

    return shrink if probability else lambda z: z


def _smooth(width: int, like: Tensor) -> Callable[[Tensor], Tensor]:
    if width < 0 or (width and width % 2 == 0):
        raise ValueError(f"smoothing needs an odd width, or 0, got {width}")
    if not width:
        return lambda gradient: gradient
    places = torch.arange(width, dtype=like.dtype, device=like.device) - width // 2
    bell = torch.exp(-(places**2) / (2 * 3.0**2))
    bell = bell / bell.sum()
    # One kernel per channel: smoothing must not mix the colours.
    kernel = torch.outer(bell, bell).expand(like.shape[1], 1, width, width)
    return lambda g: F.conv2d(g, kernel, padding=width // 2, groups=g.shape[1])


def unit(x: Tensor, order: int, *, whole: bool = False) -> Tensor:
    """Divide by the L1 or L2 norm per image, or of the whole batch; norms of 0 count as 1e-12."""
    if whole:
        return x / torch.linalg.vector_norm(x, order).clamp_min(_FLOOR)
    length = torch.linalg.vector_norm(x.flatten(1), order, dim=1).clamp_min(_FLOOR)
    return x / column(length, x)
