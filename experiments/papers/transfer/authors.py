"""What the released code of Andreina et al. (AAAI 2025) ships and does where it differs from ours.

Experiments with ``ensemble.quirks = true`` or ``ensemble.master`` run with it, in process::

    python -m experiments.papers.transfer.authors EXPERIMENT.toml

Where its program differs: a StepLR whose step is no whole number and so never decays; a CyclicLR
that is stepped once an epoch with a half-cycle of 2,000 and cycles the momentum of plain SGD too; a
cosine that rises again after its T_max; validation on augmented images; wide ranges of schedule
values in tuning; and a deterministic assignment that repeats values. All of it is for comparison
with the published numbers.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fedrobust
from fedrobust.ensemble import practice
from fedrobust.ensemble.practice import Practice, Progress, Range
from fedrobust.experiment.modes import (
    OPTIMIZERS_OF_NODES,
    SCHEDULES_OF_NODES,
    EnsembleSettings,
    NodeSettings,
)
from fedrobust.seeds import generator
from fedrobust.training import augment as augmentation
from fedrobust.training.optimizers import OPTIMIZERS

ARCHITECTURES = (
    "vgg19",
    "resnet18",
    "preactresnet18",
    "googlenet",
    "densenet121",
    "resnext29_2x64d",
    "mobilenet_v2",
    "dpn92",
    "senet18",
    "efficientnet_b0",
    "regnetx_200mf",
    "simpledla",
)
SCHEDULERS = SCHEDULES_OF_NODES
MOMENTUM_OPTIMIZERS = tuple(name for name in OPTIMIZERS_OF_NODES if OPTIMIZERS[name].momentum)
HALF_CYCLE, CYCLE_LIMIT = 2000, 10.0  # epochs, though meant as steps; max_lr / base_lr
CYCLED_MOMENTUM = (0.8, 0.9)  # CyclicLR's defaults: at the highest and at the lowest rate
LISTS: dict[str, tuple[str, ...]] = {
    "architecture": ARCHITECTURES,
    "optimizer": OPTIMIZERS_OF_NODES,
    "scheduler": tuple(SCHEDULERS),
}


def _master(
    model: str, optimizer: str, lr: float, momentum: float, decay: float, schedule: str,
    value: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model": model,
        "optimizer": optimizer,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": decay,
        "schedule": schedule,
        "schedule_value": value,
    }


# The five master configurations that it ships; centralised accuracy reported with them: REPORTED.
MASTERS: dict[str, dict[str, Any]] = {
    "round-0": _master("vgg19", "sgd", 0.00825678, 0.720616, 2.605e-5, "cyclic"),
    "round-1": _master("regnetx_200mf", "sgd_m", 0.00604794, 0.985868, 1.0394e-4, "plateau"),
    "round-2": _master("simpledla", "sgd_n", 0.0326458, 0.872285, 1.9589e-5, "cosine", 17.036),
    "round-3": _master("googlenet", "nadam", 5.20035e-4, 0.0, 4.1293e-4, "exponential", 0.914579),
    "round-4": _master("densenet121", "adam", 6.92271e-4, 0.0, 1.5842e-5, "step", 18.528),
}
ITERATIONS = (0, 0, 2, 2, 3)
REPORTED = {
    "round-0": 0.9005,
    "round-1": 0.9262,
    "round-2": 0.9227,
    "round-3": 0.9101,
    "round-4": 0.9094,
}


def authors_cycle(
    axes: Sequence[str], master: Mapping[str, str], round: int, iteration: int, nodes: int
) -> dict[str, list[str]]:
    """Return what each node gets on each axis in the released code.

    The three lists are shuffled in place, round after round, seeded by the round. Node 0 keeps the
    master's values; node k takes, on each diverse axis in the order of ``axes``, the list without
    the value of node k - 1 at index (k + iteration) mod its length. With a cyclic schedule the
    optimizer comes from the unshuffled momentum-capable ones; with another optimizer the cyclic
    schedule leaves the list.

    Parameters
    ----------
    axes
        Of "architecture", "optimizer", "scheduler", in the order of the task's name.
    master
        Axis -> the master's value.
    round, iteration
        Which repetition, and the master's own iteration.
    nodes
        How many nodes.
    """
    lists = _shuffled(round)
    current = dict(master)
    rows = [dict(current)]
    for k in range(1, nodes):
        following = dict(current)
        for axis in axes:
            choice = list(lists[axis])
            if axis == "optimizer" and following["scheduler"] == "cyclic":
                choice = list(MOMENTUM_OPTIMIZERS)
            if axis == "scheduler" and following["optimizer"] not in MOMENTUM_OPTIMIZERS:
                choice.remove("cyclic")
            if current[axis] in choice:
                choice.remove(current[axis])
            following[axis] = choice[(k + iteration) % len(choice)]
        current = following
        rows.append(current)
    return {axis: [row[axis] for row in rows] for axis in LISTS}


def _shuffled(round: int) -> dict[str, list[str]]:
    lists = {axis: list(values) for axis, values in LISTS.items()}
    for past in range(round + 1):
        source = random.Random(past)
        # In this order: the three lists are shuffled from one source.
        for axis in ("architecture", "optimizer", "scheduler"):
            source.shuffle(lists[axis])
    return lists


def deal(
    plan: EnsembleSettings, master: NodeSettings, count: int, seed: int
) -> dict[str, list[str]]:
    """Return the released code's assignment on a plan's diverse axes; the seed is not used."""
    first = {
        "architecture": master.model,
        "optimizer": master.optimizer,
        "scheduler": master.schedule,
    }
    every = authors_cycle(plan.axes, first, plan.master_round, plan.iteration, count)
    return {axis: every[axis] for axis in plan.axes}


def rate(node: NodeSettings, now: Progress) -> tuple[float, float]:
    """Return the rate and the momentum that the released code steps with."""
    done = now.epoch * now.batches + now.batch
    if node.schedule == "cosine":
        period = (node.schedule_value or now.epochs) * now.images / now.batch_size
        return node.lr * (1 + math.cos(math.pi * done / max(period, 1))) / 2, node.momentum
    if node.schedule == "step":
        every = node.schedule_value or max(1.0, now.epochs / 3)
        # With a fraction such as 18.528 no epoch of a training is a multiple: theirs never decays.
        decays = sum(past % every == 0 for past in range(1, now.epoch + 1))
        return node.lr * 0.1**decays, node.momentum
    if node.schedule == "cyclic":
        # A triangle: from 0 up to 1 after half a cycle, and down again.
        height = 1 - abs(2 * (now.epoch / (2 * HALF_CYCLE) % 1) - 1)
        low, high = CYCLED_MOMENTUM
        return node.lr * (1 + (CYCLE_LIMIT - 1) * height), high - (high - low) * height
    return practice.rate_and_momentum(node, now)


def validation_view(images: Tensor, augment: str, *, seed: int, client: int, epoch: int) -> Tensor:
    """Return the validation images augmented like training images, another view each epoch."""
    source = generator(seed, "validation view", round=epoch, client=client)
    draws = augmentation.draw(augment, len(images), source)
    view = augmentation.apply(images, augment, draws)
    return view if view.dtype == torch.uint8 else (view * 255).round().to(torch.uint8)


def value_range(node: NodeSettings, total: int) -> Range:
    """Return the released code's range of a schedule's value, whatever the training's length."""
    ranges = {"cosine": (1.0, 50.0), "step": (10.0, 30.0)}
    return ranges.get(node.schedule) or practice.value_range(node, total)


PRACTICE = Practice(
    rate=rate,
    validation_view=validation_view,
    deal=deal,
    value_range=value_range,
    masters=MASTERS,
)


@contextmanager
def released_code() -> Iterator[None]:
    """Let experiments of this process ask for the released code inside the block."""
    with practice.practised(practice.RELEASED_CODE, PRACTICE):
        yield


def main(paths: Sequence[str]) -> None:
    """Run experiments with the released code at hand; print one JSON line a row."""
    with released_code():
        for path in paths:
            fedrobust.simulate(path, on_row=lambda experiment, row: print(json.dumps(row)))


if __name__ == "__main__":
    main(sys.argv[1:])
