"""One member's training, an epoch at a time, and its whole state as named tensors and facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.ensemble.augment import AUGMENTATIONS
from fedrobust.evaluation import evaluate, pixels
from fedrobust.experiment.schema import NodeSettings
from fedrobust.seeds import generator
from fedrobust.training.optimizers import Schedule, build_solver


@dataclass(frozen=True)
class TrainValSplit:
    """What one member learns from: uint8 images, its own training and validation parts."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


@dataclass(frozen=True)
class EpochSettings:
    """What is the same for all epochs of a training.

    Attributes
    ----------
    epochs
        Of the whole training, for the schedule.
    seed, client
        Whose draws: batches and augmentation of an epoch depend on these and the epoch alone.
    """

    epochs: int
    batch_size: int
    augment: str
    quirks: bool
    seed: int
    client: int


@dataclass
class Member:
    """A network in training; ``train_epoch`` moves it on."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    held_losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def init_member(module: nn.Module, node: NodeSettings) -> Member:
    """Return a member at its start."""
    optimizer = build_solver(
        node.optimizer,
        module.parameters(),
        lr=node.lr,
        momentum=node.momentum,
        weight_decay=node.weight_decay,
    )
    return Member(module, optimizer)


def train_epoch(
    member: Member,
    node: NodeSettings,
    diet: TrainValSplit,
    regime: EpochSettings,
    *,
    keep_best: bool = False,
) -> None:
    """Train one epoch, measure the validation part, remember the best weights if asked.

    Parameters
    ----------
    member
        Moved on in place.
    node, diet, regime
        How, from what, and under which seed.
    keep_best
        Copy the weights whenever the validation loss is the lowest so far.
    """
    total, seen = 0.0, 0
    member.module.train()
    for batch, (images, labels) in enumerate(_batches(diet, regime, member.epoch)):
        _set_rate(member, node, diet, regime, batch)
        loss = F.cross_entropy(member.module(images), labels)
        member.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        member.optimizer.step()
        total, seen = total + float(loss.detach()) * len(labels), seen + len(labels)
    member.epoch += 1
    member.losses.append(total / max(seen, 1))
    if len(diet.held_labels):
        loss_now = held_out_loss(member.module, diet, regime, member.epoch)
        member.held_losses.append(loss_now if math.isfinite(loss_now) else math.inf)
        if keep_best and member.held_losses[-1] <= min(member.held_losses):
            member.best = {k: v.detach().clone() for k, v in member.module.state_dict().items()}


def held_out_loss(
    module: nn.Module, diet: TrainValSplit, regime: EpochSettings, epoch: int
) -> float:
    """Measure the validation loss; on augmented images with quirks, as the released code does."""
    images = diet.held_images
    if regime.quirks:
        source = generator(regime.seed, "validation view", round=epoch, client=regime.client)
        view = AUGMENTATIONS[regime.augment](pixels(images), source)
        images = (view * 255).round().to(torch.uint8)
    return evaluate(module, images, diet.held_labels).loss


def curve(
    build: Callable[[], nn.Module], node: NodeSettings, diet: TrainValSplit, regime: EpochSettings
) -> Iterator[float]:
    """Train from the start and yield the validation loss after each epoch, epoch by epoch."""
    member = init_member(build(), node)
    for _ in range(regime.epochs):
        train_epoch(member, node, diet, regime)
        yield member.held_losses[-1]


def pack(member: Member) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything that the member is: float32 tensors by name, and plain facts."""
    tensors = {f"now/{k}": v for k, v in member.module.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in member.best.items()}
    for place, state in member.optimizer.state_dict()["state"].items():
        found = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        tensors |= {f"optimizer/{place}/{k}": v for k, v in found.items()}
    facts = {"epoch": member.epoch, "losses": member.losses, "held_losses": member.held_losses}
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
        state.setdefault(int(place), {})[name] = value.clone()
    whole = member.optimizer.state_dict()
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


def _batches(
    diet: TrainValSplit, regime: EpochSettings, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    source = generator(regime.seed, "member", round=epoch, client=regime.client)
    order = torch.randperm(len(diet.labels), generator=source)
    for chunk in order.split(regime.batch_size):
        if len(chunk) == 1 and len(order) > 1:
            continue  # statistics of a batch need two images
        images = AUGMENTATIONS[regime.augment](pixels(diet.images[chunk]), source)
        yield images, diet.labels[chunk]


def _set_rate(
    member: Member, node: NodeSettings, diet: TrainValSplit, regime: EpochSettings, batch: int
) -> None:
    quotient = len(diet.labels) / regime.batch_size
    schedule = Schedule(
        node.schedule,
        node.schedule_value,
        node.lr,
        regime.epochs,
        max(1, math.ceil(quotient)),
        quotient,
        regime.quirks,
    )
    base = 0.0 if node.optimizer == "sgd" else node.momentum  # plain SGD has none, but for quirks
    rate = schedule.at(member.epoch, batch, member.losses)
    momentum = schedule.momentum_at(node.optimizer, base, member.epoch)
    for group in member.optimizer.param_groups:
        group["lr"] = rate
        if "momentum" in group:
            group["momentum"] = momentum
