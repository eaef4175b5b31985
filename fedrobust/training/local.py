"""Local training of one client: the readable engine, and the loop that all training shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import Recipe
from fedrobust.training import augment
from fedrobust.training.losses import Loss, cross_entropy
from fedrobust.training.optimizers import optimizer_over
from fedrobust.training.precision import precision
from fedrobust.vector import FlatModel

Draw = Callable[[int, Recipe, torch.Generator], Iterator[Tensor]]  # -> batches of indices


def train_local(
    model: FlatModel,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    loss: Loss = cross_entropy,
    out: Tensor | None = None,
    draw: Draw | None = None,
) -> tuple[Tensor, float]:
    """Train one client from ``start`` and return what it sends.

    Parameters
    ----------
    model
        Scratch model; its parameters are overwritten.
    start
        Global parameters, (d,).
    images, labels
        The client's data: uint8 (N, C, H, W), int64 (N,), on the model's device.
    generator
        Draws the mini-batches and their augmentation.
    loss
        (module, images in [0, 1], labels) -> scalar; adversarial training comes in here.
    out
        Where to put the update, (d,); fresh memory where None.
    draw
        (images, recipe, generator) -> index batches; None: ``batches``.

    Returns
    -------
    update : Tensor
        (d,): the direction that the server subtracts.
    loss : float
        Mean training loss over the mini-batches seen.
    """
    model.load(start)
    if not model.module.training:
        model.module.train()
    out = torch.empty_like(start) if out is None else out
    order = (draw or batches)(len(labels), recipe, generator)
    steps = gradient_steps(model, images, labels, order, recipe, generator, loss)
    if recipe.mode == "gradient":
        value = next(steps)
        out.copy_(model.gradient)
        # No optimizer runs in this mode, which would have added it.
        if recipe.weight_decay:
            out.add_(start, alpha=recipe.weight_decay)
        return out, value
    optimizer = local_optimizer(model.vector, model.gradient, recipe)
    losses = []
    for value in steps:
        optimizer.step()
        losses.append(value)
    return torch.sub(start, model.vector, out=out), sum(losses) / len(losses)


def batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches: shuffled passes over ``count`` images, as many as the recipe asks."""
    # A client with fewer images has one batch of all of them.
    size = min(recipe.batch_size, count)
    per_pass = -(-count // size)
    for step in range(length(count, recipe)):
        if step % per_pass == 0:
            order = torch.randperm(count, generator=generator)
        place = step % per_pass
        yield order[place * size : (place + 1) * size]


def length(count: int, recipe: Recipe) -> int:
    """Return how many mini-batches a client with ``count`` images takes in update mode."""
    return recipe.steps or recipe.epochs * -(-count // min(recipe.batch_size, count))


def local_optimizer(vector: Tensor, gradient: Tensor, recipe: Recipe) -> torch.optim.Optimizer:
    """Return a recipe's optimizer over one vector (d,), or over one row a client (m, d)."""
    return optimizer_over(
        vector,
        gradient,
        recipe.optimizer,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def gradient_steps(
    model: FlatModel,
    images: Tensor,
    labels: Tensor,
    order: Iterable[Tensor],
    recipe: Recipe,
    generator: torch.Generator,
    loss: Loss = cross_entropy,
) -> Iterator[float]:
    """Leave one mini-batch's gradient in the model and yield its loss, again and again.

    Between two of them the caller steps, or does not: this is the one loop of local training, for
    federated clients and for ensemble members.

    Parameters
    ----------
    model
        In training mode; its gradient is overwritten.
    order
        Index batches into the images.
    recipe
        Its augmentation, precision and clipping count here.
    generator
        Draws the augmentation, after the batch that it belongs to was taken from ``order``.
    """
    for batch in order:
        chosen = batch.to(images.device)
        taken = images[chosen]
        if recipe.augment != augment.NONE:
            draws = augment.draw(recipe.augment, len(batch), generator)
            taken = augment.apply(taken, recipe.augment, draws)
        model.gradient.zero_()
        with precision(recipe.precision, images.device):
            value = loss(model.module, pixels(taken), labels[chosen])
        with precision(recipe.precision, images.device, backward=True):
            value.backward()
        if recipe.clip:
            model.gradient.mul_(shortening(model.gradient, recipe.clip))
        yield float(value.detach())


def shortening(gradients: Tensor, clip: float) -> Tensor:
    """Return the factors (..., 1) that shorten vectors (..., d) to the length ``clip``, <= 1."""
    norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
    # A gradient of zeros stays: clip / 1e-12 is cut to 1.
    return (clip / norms.clamp_min(1e-12)).clamp_max(1.0)
