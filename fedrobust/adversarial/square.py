"""The Square attack: random squares, kept where they help; no gradient is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.adversarial.criteria import margin
from fedrobust.adversarial.frozen import Model, frozen
from fedrobust.adversarial.images import as_images, as_labels, check_radius

# Queries of 10,000 after which the squares' share of the image is halved once more.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCALE = 10_000


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    share: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change random squares to x + eps or x - eps as long as the margin shrinks, in L-infinity.

    What it fools that PGD does not is a sign of masked gradients.

    Parameters
    ----------
    model, x, y, eps
        As in ``pgd``; images are (B, C, H, W).
    queries
        Looks at the model, per image.
    share
        Of the pixels that the first squares cover.
    generator
        Draws stripes, places and colours; None: the draws of seed 0.

    Raises
    ------
    ValueError
        If the images leave [0, 1] or a setting is impossible.

    References
    ----------
    Andriushchenko, Croce, Flammarion, Hein, Square Attack, ECCV 2020, algorithms 1 and 2: margin
    loss, vertical stripes at first, the schedule scaled to ``queries``. A query's square has one
    place for the batch, as in the authors' program, and colours for each image.
    """
    images, labels = as_images(x, y), as_labels(y)
    _check(images, queries, share)
    check_radius(eps)
    source = generator or torch.Generator().manual_seed(0)
    batch, channels, _, width = images.shape
    with frozen(model), torch.no_grad():
        stripes = _signs(images, (batch, channels, 1, width), source)
        best = (images + eps * stripes).clamp(0, 1)
        least = -margin(model(best), labels)
        for query in range(1, queries):
            # An image that is wrong already takes no further part.
            left = (least > 0).nonzero().flatten()
            if not len(left):
                break
            tried = _changed(
                images[left], best[left], eps, side(query, queries, share, images), source
            )
            value = -margin(model(tried), labels[left])
            better = value < least[left]
            best[left[better]], least[left[better]] = tried[better], value[better]
    return best


def side(query: int, queries: int, share: float, images: Tensor) -> int:
    """Return a square's side in pixels at a query: its share of the image is halved on the way."""
    height, width = images.shape[2:]
    halved = sum(int(query / queries * SCALE) > limit for limit in HALVINGS)
    pixels = share / 2**halved * height * width
    return max(1, min(round(pixels**0.5), height - 1, width - 1))


def _changed(
    images: Tensor, best: Tensor, eps: float, side: int, source: torch.Generator
) -> Tensor:
    """Return the best images so far with one square of a colour that each image draws anew."""
    batch, channels, height, width = images.shape
    top, start = (
        int(torch.randint(0, size - side + 1, (), generator=source, device=source.device))
        for size in (height, width)
    )
    rows, columns = slice(top, top + side), slice(start, start + side)
    tried = best.clone()
    signs = _signs(images, (batch, channels, 1, 1), source)
    tried[:, :, rows, columns] = (images[:, :, rows, columns] + eps * signs).clamp(0, 1)
    return tried


def _signs(like: Tensor, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=source, device=source.device)
    return (2 * drawn - 1).to(like)


def _check(images: Tensor, queries: int, share: float) -> None:
    if images.dim() != 4 or min(images.shape[2:]) < 2:
        raise ValueError(f"square needs images (B, C, H, W), got {tuple(images.shape)}")
    if queries < 1:
        raise ValueError(f"square needs at least 1 query, got {queries}")
    if not 0 < share <= 1:
        raise ValueError(f"square needs share > 0 and <= 1, got {share}")
