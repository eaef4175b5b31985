"""Images: their range, and the 8-bit grid that files and cameras have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.spec import radius_hint

_SLACK = 1e-3  # of a level: float32 images and eps = 8 / 255 are not exact


def as_images(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return a detached copy of images (B, ...) in float32, or in float64 if they are.

    Raises
    ------
    ValueError
        If the images are not floating-point, leave [0, 1], or differ in number from the labels.
    """
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f"images need a float tensor (B, ...), got {x.dtype} {tuple(x.shape)}")
    if y is not None and tuple(y.shape) != (len(x),):
        raise ValueError(f"{len(x)} images need labels of shape ({len(x)},), got {tuple(y.shape)}")
    if x.numel():
        low, high = float(x.detach().min()), float(x.detach().max())
        # Not "low < 0 or high > 1": with NaN every comparison is false, and NaN must be refused.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images need values in [0, 1], got [{low:g}, {high:g}]")
    with torch.inference_mode(False):
        # A tensor made under inference_mode can never be part of a graph; halves lose small steps.
        return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)


def check_radius(eps: float, *, norm: str = "linf", pixels: int = 1) -> None:
    """Refuse a radius beyond which images in [0, 1] have no others: 1, or sqrt(pixels) in L2.

    Raises
    ------
    ValueError
        With the radius that was meant, if it looks like one in levels of 0..255.
    """
    largest = math.sqrt(pixels) if norm == "l2" else 1.0
    if eps > largest:
        said = f"{eps:g}{radius_hint(eps)}"
        raise ValueError(f"eps needs at most {largest:g} on images in [0, 1], got {said}")


def quantise_images(
    images: Tensor, *, reference: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Round images to the 256 levels k / 255, within ``eps`` of the reference where one is given.

    Without ``reference`` each value goes to the nearest level. With it, to the nearest level of
    those within ``eps`` of the reference, so that a perturbation of eps keeps at most
    eps * 255 levels even where the reference is off the grid; if no level is within (eps below
    half a level), to the level nearest to the reference.

    Raises
    ------
    ValueError
        If only one of ``reference`` and ``eps`` is given, or the images leave [0, 1].
    """
    levels = as_images(images) * 255
    if (reference is None) != (eps is None):
        raise ValueError("quantise_images needs reference and eps together")
    if reference is None or eps is None:
        return levels.round() / 255
    centre = as_images(reference) * 255
    low = (centre - 255 * eps - _SLACK).ceil()
    high = (centre + 255 * eps + _SLACK).floor()
    # clamp with low > high gives high without a word: such values are treated by themselves.
    none = low > high
    low, high = torch.where(none, centre.round(), low), torch.where(none, centre.round(), high)
    # eps may reach beyond black and white: the range has the last word.
    return levels.round().clamp(low, high).clamp(0, 255) / 255


def as_labels(y: Tensor) -> Tensor:
    """Return an int64 copy that autograd can keep, also of labels made under ``inference_mode``.

    Raises
    ------
    ValueError
        If the labels are no integers.
    """
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels need integers, got {y.dtype}")
    with torch.inference_mode(False):
        return y.detach().to(torch.long, copy=True)


def column(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value per image, (B,), to broadcast over the images."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
