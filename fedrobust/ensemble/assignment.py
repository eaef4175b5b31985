"""Which node gets which architecture, optimizer and schedule on the axes where nodes differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedrobust.experiment.schema import EnsembleSettings, NodeSettings
from fedrobust.seeds import generator
from fedrobust.training.optimizers import OPTIMIZERS


def fits(optimizer: str, schedule: str) -> bool:
    """Tell whether the two go together: the cycle only with optimizers that have momentum."""
    return schedule != "cyclic" or OPTIMIZERS[optimizer].momentum


def dealt(
    plan: EnsembleSettings, master: NodeSettings, count: int, seed: int
) -> dict[str, list[str]]:
    """Return the values of each diverse axis, one a node, node 0 keeping the master's.

    The plan's list is shuffled by the seed and dealt, each value once before any comes again; a
    cycle goes to optimizers with momentum only.
    """
    lists = {
        "architecture": (plan.architectures, master.model),
        "optimizer": (plan.optimizers, master.optimizer),
        "scheduler": (plan.schedules, master.schedule),
    }
    dealt = {axis: _deal(*lists[axis], count, seed, axis) for axis in plan.axes}
    optimizers = dealt.get("optimizer", [master.optimizer] * count)
    schedules = dealt.get("scheduler", [master.schedule] * count)
    if "scheduler" in dealt:
        dealt["scheduler"] = _made_to_fit(optimizers, schedules)
    return dealt


def _deal(values: Sequence[str], first: str, count: int, seed: int, axis: str) -> list[str]:
    """Deal the master's value first, then the others in an order drawn from the seed."""
    others = [value for value in values if value != first]
    # A draw for each axis: another diverse axis does not change what this one deals.
    source = generator(seed, f"assignment of {axis}")
    order = [others[i] for i in torch.randperm(len(others), generator=source).tolist()]
    hand = [first, *order]
    return [hand[k % len(hand)] for k in range(count)]


def _made_to_fit(optimizers: Sequence[str], schedules: Sequence[str]) -> list[str]:
    """Exchange schedules so that a cycle meets momentum; what fits nowhere becomes a cosine."""
    result = list(schedules)
    for k, (optimizer, schedule) in enumerate(zip(optimizers, schedules, strict=True)):
        if fits(optimizer, schedule):
            continue
        other = next(
            # From 1 on: node 0 keeps the master's.
            (j for j in range(1, len(result)) if fits(optimizers[j], schedule)
             and fits(optimizer, result[j]) and result[j] != schedule), None)  # fmt: skip
        if other is None:
            result[k] = "cosine"
        else:
            result[k], result[other] = result[other], schedule
    return result
