"""Unlabelled data: pseudo labels from a teacher, and batches with a fixed unlabelled share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedrobust.adversarial.hold import Model, predict
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
    if len(labelled) < bound or bound < 1 or (free and not len(unlabelled)):
        raise ValueError(
            f"batches of {bound} labelled and {free} unlabelled rows need as many, "
            f"got {len(labelled)} and {len(unlabelled)}"
        )
    order = labelled[torch.randperm(len(labelled), generator=generator)]
    rest = unlabelled[:0]
    for place in range(len(labelled) // bound):
        while len(rest) < free:
            fresh = unlabelled[torch.randperm(len(unlabelled), generator=generator)]
            rest = torch.cat([rest, fresh])
        yield torch.cat([order[place * bound : (place + 1) * bound], rest[:free]])
        rest = rest[free:]
