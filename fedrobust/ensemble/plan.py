"""The plan of a system: one node table from a paradigm, a master configuration and a seed.

References
----------
Andreina, Zimmer, Karame, On the Robustness of Distributed Machine Learning against Transfer
Attacks, AAAI 2025, released code; central, full-data ensemble and FedAvg are baselines of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from fedrobust.ensemble.authors import authors_cycle
from fedrobust.experiment.schema import EnsembleSettings, Experiment, NodeSettings
from fedrobust.seeds import generator
from fedrobust.training.optimizers import MOMENTUM_SOLVERS, fits

# Rates for optimizers whose own is not tuned (trials = 0); an SGD keeps the master's.
USUAL_LR = {"adam": 1e-3, "nadam": 1e-3, "adagrad": 1e-2, "rprop": 1e-3, "rmsprop": 1e-3}


def nodes_of(experiment: Experiment) -> tuple[NodeSettings, ...]:
    """Return the node table of an experiment: node 0 keeps the master's configuration.

    On a diverse axis the values are dealt from the plan's list, shuffled by the seed, each once
    before any comes again; a cycle goes to momentum-capable optimizers only. With quirks the
    assignment is the released code's deterministic cycle.
    """
    plan = experiment.ensemble
    master = master_of(experiment)
    count = experiment.clients
    columns: dict[str, Sequence[str]] = {
        "architecture": [master.model] * count,
        "optimizer": [master.optimizer] * count,
        "scheduler": [master.schedule] * count,
    }
    if plan.axes:
        deal = _authors if plan.quirks else _dealt
        columns |= deal(plan, master, count, experiment.seed)
    rows = [
        _node(master, plan, a, o, s, k)
        for k, (a, o, s) in enumerate(zip(*columns.values(), strict=True))
    ]
    for k, changes in enumerate(plan.nodes[:count]):
        rows[k] = dataclasses.replace(rows[k], **changes)
    return tuple(rows)


def master_of(experiment: Experiment) -> NodeSettings:
    """Return the master's configuration."""
    plan = experiment.ensemble
    return NodeSettings(
        experiment.model,
        plan.optimizer,
        plan.lr,
        plan.momentum,
        plan.weight_decay,
        plan.schedule,
        plan.schedule_value,
    )


def _node(
    master: NodeSettings,
    plan: EnsembleSettings,
    model: str,
    optimizer: str,
    schedule: str,
    place: int,
) -> NodeSettings:
    same = schedule == master.schedule
    lr = master.lr if optimizer == master.optimizer else USUAL_LR.get(optimizer, master.lr)
    return NodeSettings(
        model,
        optimizer,
        lr,
        master.momentum or (0.9 if optimizer in MOMENTUM_SOLVERS else 0.0),
        master.weight_decay,
        schedule,
        master.schedule_value if same else 0.0,
        tuned=plan.tunes,
    )


def _dealt(
    plan: EnsembleSettings, master: NodeSettings, count: int, seed: int
) -> dict[str, list[str]]:
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
            (j for j in range(1, len(result)) if fits(optimizers[j], schedule)
             and fits(optimizer, result[j]) and result[j] != schedule), None)  # fmt: skip
        if other is None:
            result[k] = "cosine"
        else:
            result[k], result[other] = result[other], schedule
    return result


def _authors(
    plan: EnsembleSettings, master: NodeSettings, count: int, seed: int
) -> dict[str, list[str]]:
    first = {
        "architecture": master.model,
        "optimizer": master.optimizer,
        "scheduler": master.schedule,
    }
    every = authors_cycle(plan.axes, first, plan.master_round, plan.iteration, count)
    return {axis: every[axis] for axis in plan.axes}
