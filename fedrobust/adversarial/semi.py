"""Unlabelled data: pseudo labels, batches with a fixed unlabelled share, labelled rotations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedrobust.adversarial.frozen import Model, predict
from fedrobust.adversarial.images import as_images


def pseudo_labels(teacher: Model, x: Tensor, y: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the labels with every -1 replaced by the teacher's prediction.

    References
    ----------
    Carmon et al., NeurIPS 2019, algorithm 1 (robust self-training); what DAT's released code reads
    from a file.
    """
    missing = y < 0
    filled = y.clone()
    filled[missing] = predict(teacher, as_images(x)[missing], batch_size=batch_size).to(y)
    return filled


def semi_batches(
    y: Tensor, *, batch_size: int, fraction: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield index batches of which exactly round(fraction * batch_size) rows are unlabelled.

    One pass over the labelled rows (the last, incomplete batch is left out); the unlabelled rows
    go round, shuffled anew each time.

    Parameters
    ----------
    y
        Labels, -1 for unlabelled.
    batch_size, fraction
        Rows per batch, and the unlabelled share of each in [0, 1).
    generator
        Draws the order.

    Raises
    ------
    ValueError
        If the fraction leaves [0, 1), or a batch needs rows of a kind that is missing.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction needs a value in [0, 1), got {fraction}")
    free = round(fraction * batch_size)
    bound = batch_size - free
    labelled, unlabelled = (y >= 0).nonzero()[:, 0], (y < 0).nonzero()[:, 0]
    # Without any unlabelled row the loop below would never fill a batch.
    if len(labelled) < bound or bound < 1 or (free and not len(unlabelled)):
        raise ValueError(
            f"batches of {bound} labelled and {free} unlabelled rows need as many, "
            f"got {len(labelled)} and {len(unlabelled)}"
        )
    order = labelled[torch.randperm(len(labelled), generator=generator)]
    rest = unlabelled[:0]
    for place in range(len(labelled) // bound):
        # A loop: a batch may need more unlabelled rows than there are.
        while len(rest) < free:
            fresh = unlabelled[torch.randperm(len(unlabelled), generator=generator)]
            rest = torch.cat([rest, fresh])
        yield torch.cat([order[place * bound : (place + 1) * bound], rest[:free]])
        rest = rest[free:]


class FirstLogits(nn.Module):
    """A model of which only the first ``count`` logits count: a head for another task.

    Parameters
    ----------
    model
        Images in [0, 1] to logits.
    count
        Classes of the other task: 4 for rotations.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model = model
        self._count = count

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, count) logits."""
        logits: Tensor = self.model(images)
        return logits[:, : self._count]


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images turned by 0, 90, 180 and 270 degrees, (4 B, C, S, S), and which turn.

    The labels of self-supervised pre-training: a head with four classes learns them, under attack
    if ``adversarial_loss`` is given them, and the trunk goes on to the real task.

    Raises
    ------
    ValueError
        If the images are not square, of shape (B, C, S, S).

    References
    ----------
    Gidaris et al., ICLR 2018; adversarially Chen et al., Adversarial Robustness: From
    Self-Supervised Pre-Training to Fine-Tuning, CVPR 2020.
    """
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(f"rotations need square images (B, C, S, S), got {tuple(x.shape)}")
    turned = torch.cat([x.rot90(turn, dims=(2, 3)) for turn in range(4)])
    # cat laid the turns one after the other: first all images at 0 degrees, then all at 90, ...
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))
