"""What the released code of Andreina et al. (AAAI 2025) ships and does, as data and one function.

Its selection is a deterministic cycle that repeats values: kept for comparison, not by default.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from fedrobust.training.optimizers import LR_SCHEDULES, MOMENTUM_SOLVERS, SOLVERS

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
SCHEDULERS = LR_SCHEDULES[1:]
LISTS: dict[str, tuple[str, ...]] = {
    "architecture": ARCHITECTURES,
    "optimizer": tuple(SOLVERS),
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


# The five shipped master configurations; centralised accuracy reported with them: REPORTED.
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
                choice = list(MOMENTUM_SOLVERS)
            if axis == "scheduler" and following["optimizer"] not in MOMENTUM_SOLVERS:
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
        for axis in ("architecture", "optimizer", "scheduler"):
            source.shuffle(lists[axis])
    return lists
