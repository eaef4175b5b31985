"""One member's training, an epoch at a time, and its whole state as named tensors and facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust.ensemble.practice import OURS, Practice, Progress
from fedrobust.experiment.schema import CLASSES, NodeSettings
from fedrobust.seeds import generator
from fedrobust.spec import Spec
from fedrobust.training.local import Recipe, gradient_steps
from fedrobust.training.optimizers import optimizer_over
from fedrobust.training.tasks import loss_of, measured
from fedrobust.vector import FlatModel


@dataclass(frozen=True)
class TrainValSplit:
    """What one member learns from: uint8 images, its own training and validation parts."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class EpochSettings:
    """What is the same for all epochs of a training.

    Attributes
    ----------
    epochs
        Of the whole training, for the schedule.
    seed, client
        Whose draws: batches and augmentation of an epoch depend on these and the epoch alone.
    practice
        How a rate is set and what the validation part is.
    loss
        What is minimised, and measured on the validation part: a spec of ``TASK_LOSSES``.
    """

    epochs: int
    batch_size: int
    augment: str
    seed: int
    client: int
    practice: Practice = OURS
    loss: Spec = CLASSES


@dataclass
class Member:
    """A network in training; ``train_epoch`` moves it on."""

    model: FlatModel
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    held_losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.model.module


def init_member(module: nn.Module, node: NodeSettings) -> Member:
    """Return a member at its start."""
    model = FlatModel(module)
    optimizer = optimizer_over(
        model.vector,
        model.gradient,
        node.optimizer,
        lr=node.lr,
        momentum=node.momentum,
        weight_decay=node.weight_decay,
    )
    return Member(model, optimizer)


def train_epoch(
    member: Member,
    node: NodeSettings,
    data: TrainValSplit,
    settings: EpochSettings,
    *,
    keep_best: bool = False,
) -> None:
    """Train one epoch, measure the validation part, remember the best weights if asked.

    Parameters
    ----------
    member
        Moved on in place.
    node, data, settings
        How, from what, and under which seed.
    keep_best
        Copy the weights whenever the validation loss is the lowest so far.
    """
    source = generator(settings.seed, "member", round=member.epoch, client=settings.client)
    order = torch.randperm(len(data.labels), generator=source)
    # BatchNorm's statistics of a batch need two images: a single one left over is left out.
    batches = [b for b in order.split(settings.batch_size) if len(b) > 1 or len(order) == 1]
    recipe = Recipe(augment=settings.augment)
    member.module.train()
    loss = loss_of(settings.loss)
    steps = gradient_steps(member.model, data.images, data.labels, batches, recipe, source, loss)
    total = 0.0
    for batch, (chosen, value) in enumerate(zip(batches, steps, strict=True)):
        _set_rate(member, node, data, settings, batch)
        member.optimizer.step()
        total += value * len(chosen)
    member.epoch += 1
    member.losses.append(total / max(sum(map(len, batches)), 1))
    if len(data.held_labels):
        loss_now = held_out_loss(member.module, data, settings, member.epoch)
        # min() with a NaN depends on its place; infinity is never the lowest.
        member.held_losses.append(loss_now if math.isfinite(loss_now) else math.inf)
        if keep_best and member.held_losses[-1] <= min(member.held_losses):
            # Cloned: training goes on in the same memory.
            member.best = {k: v.detach().clone() for k, v in member.module.state_dict().items()}


def held_out_loss(
    module: nn.Module, data: TrainValSplit, settings: EpochSettings, epoch: int
) -> float:
    """Measure the loss on the validation part, as the practice looks at it."""
    images = settings.practice.validation_view(
        data.held_images, settings.augment, seed=settings.seed, client=settings.client, epoch=epoch
    )
    return float(measured(module, images, data.held_labels, loss=settings.loss)["loss"])  # type: ignore[arg-type]


def curve(
    build: Callable[[], nn.Module],
    node: NodeSettings,
    data: TrainValSplit,
    settings: EpochSettings,
) -> Iterator[float]:
    """Train from the start and yield the validation loss after each epoch, epoch by epoch."""
    member = init_member(build(), node)
    for _ in range(settings.epochs):
        train_epoch(member, node, data, settings)
        yield member.held_losses[-1]


def pack(member: Member) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything that the member is: float32 tensors by name, and plain facts."""
    tensors = {f"now/{k}": v for k, v in member.module.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in member.best.items()}
    for place, state in member.optimizer.state_dict()["state"].items():
        found = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        tensors |= {f"optimizer/{place}/{k}": v for k, v in found.items()}
    facts = {"epoch": member.epoch, "losses": member.losses, "held_losses": member.held_losses}
    # float32 throughout, BatchNorm's batch counter too: exact to 2^24, cast back on loading.
    return {k: v.detach().float().clone() for k, v in tensors.items()}, facts


def unpack(
    module: nn.Module, node: NodeSettings, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> Member:
    """Put a packed member back into a fresh module of its architecture."""
    member = init_member(module, node)
    module.load_state_dict(_under("now/", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer/", tensors).items():
        place, _, name = key.partition("/")
        # A copy, since an optimizer writes its state in place.
        state.setdefault(int(place), {})[name] = value.clone()
    whole = member.optimizer.state_dict()
    # Plain SGD has no state to put back.
    member.optimizer.load_state_dict({**whole, "state": state or whole["state"]})
    member.epoch = int(facts["epoch"])
    member.losses, member.held_losses = list(facts["losses"]), list(facts["held_losses"])
    member.best = _under("best/", tensors)
    return member


def weights(tensors: Mapping[str, Tensor], *, best: bool) -> dict[str, Tensor]:
    """Return the weights that vote: the last ones, or those of lowest validation loss."""
    return (_under("best/", tensors) if best else {}) or _under("now/", tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _set_rate(
    member: Member, node: NodeSettings, data: TrainValSplit, settings: EpochSettings, batch: int
) -> None:
    images, size = len(data.labels), settings.batch_size
    now = Progress(
        epoch=member.epoch,
        batch=batch,
        epochs=settings.epochs,
        batches=max(1, math.ceil(images / size)),
        images=images,
        batch_size=size,
        losses=member.losses,
    )
    rate, momentum = settings.practice.rate(node, now)
    for group in member.optimizer.param_groups:
        group["lr"] = rate
        # Adam's kind has betas instead.
        if "momentum" in group:
            group["momentum"] = momentum
