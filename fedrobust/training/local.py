"""Local training of one client: the readable engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedrobust.evaluation import pixels
from fedrobust.training import augment
from fedrobust.training.losses import Loss, cross_entropy
from fedrobust.training.precision import precision
from fedrobust.vector import FlatModel

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
WITH_MOMENTUM = ("sgd", "rmsprop")
Draw = Callable[[int, "Recipe", torch.Generator], Iterator[Tensor]]  # -> batches of indices


@dataclass(frozen=True)
class Recipe:
    """How a client trains in one round.

    Attributes
    ----------
    mode
        "gradient": one mini-batch gradient at the global model. "update": local steps, answered
        with global minus local parameters, so that the server subtracts either.
    batch_size
        Images per mini-batch, at most what the client holds.
    epochs, steps
        Length of local training in update mode: ``steps`` mini-batches, or ``epochs`` passes
        where steps is 0.
    optimizer, lr, momentum, weight_decay
        The local optimizer of update mode; weight decay also adds to the gradient of gradient mode.
    schedule
        A spec of ``SCHEDULES``: how ``lr`` changes from round to round.
    clip
        Greatest L2 norm of a mini-batch gradient, longer ones are shortened to it; 0 clips none.
    augment
        "none", "flip", "crop" or "flip+crop": random changes of the training images.
    precision
        "float32", "tf32" or "bf16".
    cohort
        "off": clients train one by one. "vmap": clients of one kind train as one stack. "auto":
        as one stack where that is possible and faster. Equal to "off" up to float error.
    """

    mode: str = "gradient"
    batch_size: int = 32
    epochs: int = 1
    steps: int = 0
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    clip: float = 0.0
    augment: str = "none"
    precision: str = "float32"
    cohort: str = "off"


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one CPU thread: the sums of a gradient depend on the number of threads."""
    before = torch.get_num_threads()
    if before == 1:  # setting it costs a tenth of a millisecond, the same number or not
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    steps = _steps(model, images, labels, recipe, generator, loss, draw or batches)
    if recipe.mode == "gradient":
        value = next(steps)
        out.copy_(model.gradient)
        if recipe.weight_decay:
            out.add_(start, alpha=recipe.weight_decay)
        return out, value
    optimizer = optimizer_over(model.vector, model.gradient, recipe)
    losses = []
    for value in steps:
        optimizer.step()
        losses.append(value)
    return torch.sub(start, model.vector, out=out), sum(losses) / len(losses)


def batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches: shuffled passes over ``count`` images, as many as the recipe asks."""
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


def optimizer_over(vector: Tensor, gradient: Tensor, recipe: Recipe) -> torch.optim.Optimizer:
    """Return an optimizer over one tensor: elementwise steps need no named tensors."""
    flat = torch.nn.Parameter(vector)
    flat.data = vector
    flat.grad = gradient
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer in WITH_MOMENTUM:
        settings["momentum"] = recipe.momentum
    return OPTIMIZERS[recipe.optimizer]([flat], **settings)


def _steps(
    model: FlatModel,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    loss: Loss,
    draw: Draw,
) -> Iterator[float]:
    """Leave one mini-batch's gradient in the model and yield its loss, again and again."""
    for batch in draw(len(labels), recipe, generator):
        chosen = batch.to(images.device)
        taken = images[chosen]
        if recipe.augment != augment.NONE:
            draws = augment.draw(recipe.augment, len(batch), generator)
            taken = augment.apply(taken, recipe.augment, draws)
        model.gradient.zero_()
        with precision(recipe.precision, images.device):
            value = loss(model.module, pixels(taken), labels[chosen])
        value.backward()
        if recipe.clip:
            model.gradient.mul_(shortening(model.gradient, recipe.clip))
        yield float(value.detach())


def shortening(gradients: Tensor, clip: float) -> Tensor:
    """Return the factors (..., 1) that shorten vectors (..., d) to the length ``clip``, <= 1."""
    norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
    return (clip / norms.clamp_min(1e-12)).clamp_max(1.0)
