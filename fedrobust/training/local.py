"""Local training of one client: the readable engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.evaluation import pixels
from fedrobust.vector import FlatModel

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
WITH_MOMENTUM = ("sgd", "rmsprop")
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


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
    """

    mode: str = "gradient"
    batch_size: int = 32
    epochs: int = 1
    steps: int = 0
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy on clean images."""
    return F.cross_entropy(module(images), labels)


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one CPU thread: the sums of a gradient depend on the number of threads."""
    before = torch.get_num_threads()
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
) -> tuple[Tensor, float]:
    """Train one client from ``start`` and return what it sends.

    Parameters
    ----------
    model
        Scratch model; its parameters are overwritten.
    start
        Global parameters, (d,).
    images, labels
        The client's data: uint8 (N, C, H, W), int64 (N,).
    generator
        Draws the mini-batches.
    loss
        (module, images in [0, 1], labels) -> scalar; adversarial training comes in here.

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
    if recipe.mode == "gradient":
        batch = next(batches(len(labels), recipe, generator))
        value = _backward(model, images[batch], labels[batch], loss)
        update = model.gradient.clone()
        if recipe.weight_decay:
            update.add_(start, alpha=recipe.weight_decay)
        return update, value
    return _local_steps(model, start, images, labels, recipe, generator, loss)


def batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches: shuffled passes over ``count`` images, as many as the recipe asks."""
    size = min(recipe.batch_size, count)
    per_pass = -(-count // size)
    total = recipe.steps or recipe.epochs * per_pass
    for step in range(total):
        if step % per_pass == 0:
            order = torch.randperm(count, generator=generator)
        place = step % per_pass
        yield order[place * size : (place + 1) * size]


def _backward(model: FlatModel, images: Tensor, labels: Tensor, loss: Loss) -> float:
    model.gradient.zero_()
    value = loss(model.module, pixels(images), labels)
    value.backward()
    return float(value.detach())


def _local_steps(
    model: FlatModel,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    loss: Loss,
) -> tuple[Tensor, float]:
    optimizer = _optimizer(model, recipe)
    losses = []
    for batch in batches(len(labels), recipe, generator):
        losses.append(_backward(model, images[batch], labels[batch], loss))
        optimizer.step()
    return start - model.vector, sum(losses) / len(losses)


def _optimizer(model: FlatModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return an optimizer over the one flat vector: elementwise steps need no named tensors."""
    flat = torch.nn.Parameter(model.vector)
    flat.data = model.vector
    flat.grad = model.gradient
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer in WITH_MOMENTUM:
        settings["momentum"] = recipe.momentum
    return OPTIMIZERS[recipe.optimizer]([flat], **settings)
