"""The plan of a system: one node table from a paradigm, a master configuration and a seed.

References
----------
Andreina, Zimmer, Karame, On the Robustness of Distributed Machine Learning against Transfer
Attacks, AAAI 2025, released code; central, full-data ensemble and FedAvg are baselines of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fedrobust.ensemble.authors import MASTERS, authors_cycle
from fedrobust.seeds import generator
from fedrobust.training.optimizers import LR_SCHEDULES, MOMENTUM_SOLVERS, SOLVERS, fits

if TYPE_CHECKING:
    from fedrobust.experiment.schema import Experiment

AXES = ("architecture", "optimizer", "scheduler")
ALONE = ("central", "full_data", "fedavg", "same", "tuned", "full")
PARADIGMS = (
    *ALONE,
    *AXES,
    "architecture+scheduler",
    "architecture+optimizer",
    "scheduler+optimizer",
    "architecture+optimizer+scheduler",
)
# Rates for optimizers whose own is not tuned (trials = 0); an SGD keeps the master's.
USUAL_LR = {"adam": 1e-3, "nadam": 1e-3, "adagrad": 1e-2, "rprop": 1e-3, "rmsprop": 1e-3}


@dataclass(frozen=True)
class NodeSettings:
    """How one node trains: architecture, optimizer, schedule and their values."""

    model: str
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    schedule_value: float = 0.0
    tuned: bool = False


@dataclass(frozen=True)
class Plan:
    """Distributed learning without averaging, and inference by vote; off without a paradigm.

    Attributes
    ----------
    paradigm
        "central": one node, all data. "full_data": every node all data, only the initial weights
        and the order differ. "fedavg": one averaged model (strategy ``RobustStrategy``). "same":
        disjoint shares, the master's values. "tuned": own values. "architecture", "optimizer",
        "scheduler", two of them joined by "+", or "full" for all three: these differ as well.
    master
        "" for the values below, or one of the five shipped ones, "round-0" to "round-4".
    optimizer, lr, momentum, weight_decay, schedule, schedule_value
        Of the master; its architecture is the experiment's ``model``.
    batch_size
        Images per optimizer step.
    epochs
        Passes over the node's training part each round.
    validation
        Share of a node's data kept for its tuning and its choice of the checkpoint, in [0, 1).
    augment
        "none", "light" (pad 4, crop, flip) or "paper" (flip, RandomResizedCrop of 0.08 to 1).
    checkpoint
        "last", or "best": the epoch of lowest validation loss votes.
    trials, tune_epochs
        Random search of nodes that tune: trials of each phase (0: none) and epochs of the two.
    architectures, optimizers, schedules
        What nodes choose from on their diverse axes.
    train_images, test_images
        Use this many images, drawn once for all seeds (the first ones, of the test set); 0: all.
    votes
        Names of ``fedrobust.ensemble.VOTES``; "robust" aggregates with the experiment's rule.
    answer
        What members send: "labels", "probabilities" or "logits".
    query_images
        Images a query message.
    lie
        What Byzantine members do at inference, one of ``clients.ensemble_member.LIES``.
    probe_images
        Measure gradient similarity and curvature on this many images at the end; 0: not.
    quirks
        Do as the released code does: solvers, augmentation of the validation part, assignment.
    master_round, iteration
        The released code's indices of the assignment, with quirks only.
    nodes
        One table a node whose keys replace what the paradigm gives it.
    """

    paradigm: str = ""
    master: str = ""
    optimizer: str = "sgd_m"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    schedule_value: float = 0.0
    batch_size: int = 64
    epochs: int = 1
    validation: float = 0.2
    augment: str = "none"
    checkpoint: str = "last"
    trials: int = 0
    tune_epochs: tuple[int, ...] = (25, 50)
    architectures: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = tuple(SOLVERS)
    schedules: tuple[str, ...] = tuple(LR_SCHEDULES[1:])
    train_images: int = 0
    test_images: int = 0
    votes: tuple[str, ...] = ("soft", "hard", "weighted")
    answer: str = "probabilities"
    query_images: int = 500
    lie: str = "flip"
    probe_images: int = 0
    quirks: bool = False
    master_round: int = 0
    iteration: int = 0
    nodes: tuple[dict[str, Any], ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes on which nodes differ."""
        named = AXES if self.paradigm == "full" else tuple(self.paradigm.split("+"))
        return tuple(axis for axis in named if axis in AXES)

    @property
    def tunes(self) -> bool:
        """Whether nodes look for values of their own."""
        return self.trials > 0 and (self.paradigm == "tuned" or bool(self.axes))

    @property
    def votes_at_inference(self) -> bool:
        """Whether members vote: any paradigm but FedAvg."""
        return self.paradigm not in ("", "fedavg")


@dataclass(frozen=True)
class Transfer:
    """The transfer attacker: its surrogates, its data, its attacks; off without an attack.

    Attributes
    ----------
    attacks
        Names of ``fedrobust.adversarial.TRANSFER_ATTACKS``.
    levels
        L-infinity radius in 8-bit levels: eps = levels / 255.
    steps
        Iterations.
    step_scaling
        How step sizes go with eps: "fixed" (the public code's) or "proportional".
    surrogates
        Architectures, one surrogate each; a name may occur twice, seeds differ.
    data
        "full": the defenders' whole training set. "disjoint": attacker and defender have a half
        each. "share": the attacker has 1 / ``parts`` of it.
    parts
        See ``data``.
    epochs, optimizer, lr, momentum, weight_decay, batch_size, augment
        How surrogates are trained, cosine over the whole training.
    images
        How many test images, from the first; all of them are attacked.
    seed
        The attacker's own: its images do not depend on the defender's seed.
    """

    attacks: tuple[str, ...] = ()
    levels: float = 8.0
    steps: int = 10
    step_scaling: str = "fixed"
    surrogates: tuple[str, ...] = ()
    data: str = "full"
    parts: int = 7
    epochs: int = 10
    optimizer: str = "sgd_m"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    augment: str = "none"
    images: int = 500
    seed: int = 1000

    @property
    def eps(self) -> float:
        """Radius in units of [0, 1] pixels."""
        return self.levels / 255


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
    """Return the master's configuration: the plan's values, or one of the shipped ones."""
    plan = experiment.ensemble
    if plan.master:
        return NodeSettings(**MASTERS[plan.master])
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
    master: NodeSettings, plan: Plan, model: str, optimizer: str, schedule: str, place: int
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


def _dealt(plan: Plan, master: NodeSettings, count: int, seed: int) -> dict[str, list[str]]:
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


def _authors(plan: Plan, master: NodeSettings, count: int, seed: int) -> dict[str, list[str]]:
    first = {
        "architecture": master.model,
        "optimizer": master.optimizer,
        "scheduler": master.schedule,
    }
    every = authors_cycle(plan.axes, first, plan.master_round, plan.iteration, count)
    return {axis: every[axis] for axis in plan.axes}
