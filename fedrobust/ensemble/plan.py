"""The plan of a system: one node table from a paradigm, a master configuration and a seed.

References
----------
Andreina, Zimmer, Karame, On the Robustness of Distributed Machine Learning against Transfer
Attacks, AAAI 2025, released code; central, full-data ensemble and FedAvg are baselines of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedrobust.ensemble.practice import practice_of, released_code
from fedrobust.experiment.schema import EnsembleSettings, Experiment, NodeSettings
from fedrobust.spec import SpecError, suggest
from fedrobust.training.optimizers import OPTIMIZERS

SCHEDULES_WITH_VALUE = ("cosine", "step", "exponential")  # have a value to tune
NODE_SCHEDULES = ("constant", *SCHEDULES_WITH_VALUE, "plateau", "cyclic")
PLAIN = "sgd"  # without momentum on a node, whatever the master has: "sgd_m" is the one with it
# Rates for optimizers whose own is not tuned (trials = 0); an SGD keeps the master's.
USUAL_LR = {
    "adam": 1e-3,
    "adamw": 1e-3,
    "nadam": 1e-3,
    "adagrad": 1e-2,
    "rprop": 1e-3,
    "rmsprop": 1e-3,
}


def nodes_of(experiment: Experiment) -> tuple[NodeSettings, ...]:
    """Return the node table of an experiment: node 0 keeps the master's configuration.

    On a diverse axis the values are dealt as ``Practice.deal`` says.

    Raises
    ------
    SpecError
        If the plan asks for the released code, which is not there.
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
        columns |= practice_of(plan).deal(plan, master, count, experiment.seed)
    rows = [
        _node(master, plan, a, o, s, k)
        for k, (a, o, s) in enumerate(zip(*columns.values(), strict=True))
    ]
    for k, changes in enumerate(plan.nodes[:count]):
        rows[k] = dataclasses.replace(rows[k], **changes)
        if rows[k].optimizer == PLAIN and "momentum" not in changes:
            rows[k] = dataclasses.replace(rows[k], momentum=0.0)
    return tuple(rows)


def master_of(experiment: Experiment) -> NodeSettings:
    """Return the master's configuration: the plan's values, or one of the paper's."""
    plan = experiment.ensemble
    if plan.master:
        masters = released_code(f"ensemble.master = {plan.master!r}").masters
        if plan.master not in masters:
            hint = suggest(plan.master, list(masters))
            raise SpecError(f"unknown ensemble.master {plan.master!r}; {hint}")
        return NodeSettings(**masters[plan.master])
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
    same, usual = schedule == master.schedule, 0.9 if OPTIMIZERS[optimizer].momentum else 0.0
    lr = master.lr if optimizer == master.optimizer else USUAL_LR.get(optimizer, master.lr)
    return NodeSettings(
        model,
        optimizer,
        lr,
        0.0 if optimizer == PLAIN else master.momentum or usual,
        master.weight_decay,
        schedule,
        # It would mean something else in another schedule: 0 is that one's own default.
        master.schedule_value if same else 0.0,
        tuned=plan.tunes,
    )
