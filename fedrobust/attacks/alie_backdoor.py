"""The ALIE backdoor: train a backdoored model near the honest mean, hide it in their spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.attacks.backdoors import stamp
from fedrobust.attacks.data import alie_backdoor as clip_into_spread
from fedrobust.attacks.data import backdoor_loss, delta_loss
from fedrobust.evaluation import evaluating, pixels
from fedrobust.vector import FlatModel

BRIGHTEST = 255
MEASURED_ON = ("held_out", "train")
TRAIN_SAMPLE = 2000  # training images that "train" looks at


def alie_backdoor(
    honest: Tensor,
    *,
    model: FlatModel,
    start: Tensor,
    images: Tensor,
    lr: float,
    generator: torch.Generator,
    pool: Sequence[Tensor] = (),
    z: float = 0.2,
    alpha: float = 0.2,
    epochs: int = 5,
    batch_size: int = 200,
    local_lr: float = 0.1,
    target: int = 0,
    size: int = 5,
    value: int = 255,
    train_images: int = 0,
    released_code: bool = False,
    measured_on: str = "held_out",
) -> Tensor:
    """Plant a pattern backdoor inside mean +- z std of the updates in view: (h, d) -> (d,).

    Parameters
    ----------
    honest
        Updates that the attackers see: their own honest ones in the paper.
    model, start
        Scratch model, and the global parameters (d,) of this round.
    images
        uint8 images that the attackers train on, stamped with the pattern.
    lr
        The server's step: training starts where the honest mean would lead, start - lr mean.
    pool
        The images of every colluder, from which ``train_images`` are drawn.
    z, alpha
        Range of the clipping; weight of the backdoor against the distance to the start.
    epochs, batch_size, local_lr
        Passes of plain SGD over the stamped images. The program's loss is ``1 / alpha`` times as
        large as the paper's, so that its step of 0.1 is a ``local_lr`` of 0.5 here.
    target, size, value
        Class that the pattern means; its side in pixels, top left; its intensity. Above 255 it is
        brighter than an image can be: the program's 2.8 on images normalised by 0.5 and 0.5 is 484.
    train_images
        How many images of all colluders to train on in a round, drawn anew (the program: about
        2,000 of the training set); 0: all of the crafting colluder's own.
    released_code
        Aim with the slip of sign of the authors' program.
    measured_on
        Read by the evaluation alone. "held_out": test images of other classes than the target.
        "train": as in the program, training images of all classes, of which the colluders may have
        seen any.

    References
    ----------
    Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019, Algorithm 4 and section 4.2
    (z = alpha = 0.2). Their program makes a new optimiser for each batch, so that its momentum
    never acts: plain SGD here, without its weight decay.
    """
    mean = honest.mean(0)
    model.load(start - lr * mean)
    if train_images:
        images = drawn(pool or (images,), train_images, generator)
    stamped = marked(images, size=size, value=value)
    _train_backdoor(model, stamped, target, alpha, epochs, batch_size, local_lr, generator)
    # As a gradient: the server subtracts lr times it and lands on the trained model.
    aim = (start - model.vector) / lr
    return clip_into_spread(honest, aim, z=z, released_code=released_code)


def drawn(pool: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` images of several sets without replacement, all of them if there are fewer."""
    sizes = torch.tensor([len(part) for part in pool])
    chosen = torch.randperm(int(sizes.sum()), generator=generator)[:count]
    ends = sizes.cumsum(0)
    whose = torch.searchsorted(ends, chosen, right=True)
    places = zip(whose.tolist(), (chosen - (ends - sizes)[whose]).tolist(), strict=True)
    return torch.stack([pool[part][place] for part, place in places])


def marked(images: Tensor, *, size: int, value: int, corner: int = 0) -> Tensor:
    """Stamp images as ``stamp`` does; above 255 they come back as float32 in units of white."""
    if value <= BRIGHTEST:
        return stamp(images, size=size, value=value, corner=corner)
    white = stamp(images, size=size, value=BRIGHTEST, corner=corner)
    empty = stamp(images, size=size, value=0, corner=corner)
    return torch.where(white != empty, value / BRIGHTEST, pixels(white))


def _train_backdoor(
    model: FlatModel,
    stamped: Tensor,
    target: int,
    alpha: float,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> None:
    parameters = list(model.module.parameters())
    # The distance is to where the honest mean leads, loaded just before, not to the global model.
    begin = [p.detach().clone() for p in parameters]
    model.module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(stamped), generator=generator).split(batch_size):
            model.gradient.zero_()
            logits = model.module(pixels(stamped[batch]))
            labels = torch.full((len(batch),), target, device=stamped.device)
            planted = F.cross_entropy(logits, labels)
            backdoor_loss(planted, delta_loss(parameters, begin), alpha=alpha).backward()
            # In place: the module's parameters are views of this vector.
            model.vector.sub_(model.gradient, alpha=lr)


# What the malicious client hands to an attack that trains a model of its own.
TRAINED_SUPPLIED = ("model", "start", "images", "lr", "generator", "pool")


def success_rate(
    module: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    target: int = 0,
    size: int = 5,
    value: int = 255,
    corner: int = 0,
    all_classes: bool = False,
) -> float:
    """Share of stamped images of other classes that the model takes for the target, in [0, 1].

    Parameters
    ----------
    images, labels
        Held-out uint8 (N, C, H, W) and int64 (N,), clean; images of the target class are left out.
    all_classes
        Count images of the target class too, each a hit without any backdoor.

    Raises
    ------
    ValueError
        If all of them are of the target class.
    """
    # An image of the target class would count as a hit without any backdoor.
    others = images if all_classes else images[labels != target]
    return taken_for(module, marked(others, size=size, value=value, corner=corner), target)


def taken_for(module: torch.nn.Module, images: Tensor, target: int) -> float:
    """Share of the images, (N, C, H, W) uint8, that the model takes for a class, in [0, 1].

    Raises
    ------
    ValueError
        If there are no images.
    """
    if not len(images):
        raise ValueError(f"attack_success needs images, of classes other than the target {target}")
    with torch.inference_mode(), evaluating(module):
        parts = images.split(500)
        hits = sum(int((module(pixels(part)).argmax(1) == target).sum()) for part in parts)
    return hits / len(images)
