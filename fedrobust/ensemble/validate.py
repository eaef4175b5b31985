"""What must hold of ``[ensemble]`` and ``[transfer]`` beyond the ranges of single values."""

from __future__ import annotations

from collections.abc import Iterator

from fedrobust import aggregation
from fedrobust.adversarial.objective import TRANSFER_ATTACKS
from fedrobust.attacks.threat_model import ANSWERS, NONE
from fedrobust.ensemble import VOTES
from fedrobust.ensemble.assignment import fits
from fedrobust.ensemble.plan import NODE_SCHEDULES, master_of, nodes_of
from fedrobust.ensemble.practice import practice_of
from fedrobust.experiment.schema import EnsembleSettings, Experiment, Transfer
from fedrobust.models import MODELS
from fedrobust.spec import SpecError, split, suggest
from fedrobust.training.augment import names_of
from fedrobust.training.optimizers import OPTIMIZERS

Named = tuple[str, str, tuple[str, ...] | list[str]]


def check(e: Experiment) -> list[str]:
    """Return everything that is wrong with an experiment's ensemble and its transfer attacker."""
    errors = [
        f"unknown {kind} {name!r}; {suggest(name, list(table))}"
        for name, kind, table in (*_names(e.ensemble), *_attacker_names(e.transfer))
        if name not in table
    ]
    errors += [sentence for holds, sentence in (*_ranges(e), *_attacker_ranges(e)) if not holds]
    errors += _refusals(e)
    # Nodes and votes are resolved from these settings, which have to be right first.
    return errors or [*_nodes(e), *_votes(e)]


def _refusals(e: Experiment) -> Iterator[str]:
    """Try what refuses by itself: augmentations, and what the released code alone has."""
    for key, augment in (("ensemble", e.ensemble.augment), ("transfer", e.transfer.augment)):
        try:
            names_of(augment)
        except SpecError as error:
            yield f"{key}.augment: {error}"
    for probe in (lambda: practice_of(e.ensemble), lambda: master_of(e)):
        try:
            probe()
        except SpecError as error:
            yield str(error)


def _names(plan: EnsembleSettings) -> Iterator[Named]:
    yield plan.optimizer, "ensemble.optimizer", list(OPTIMIZERS)
    yield plan.schedule, "ensemble.schedule", NODE_SCHEDULES
    for key, table in (
        ("architectures", list(MODELS)),
        ("optimizers", list(OPTIMIZERS)),
        ("schedules", list(NODE_SCHEDULES)),
        ("votes", list(VOTES)),
    ):
        for name in getattr(plan, key):
            yield name, f"name in ensemble.{key}", table


def _attacker_names(transfer: Transfer) -> Iterator[Named]:
    yield transfer.optimizer, "transfer.optimizer", list(OPTIMIZERS)
    for name in transfer.attacks:
        yield name, "name in transfer.attacks", list(TRANSFER_ATTACKS)
    for name in transfer.surrogates:
        yield name, "name in transfer.surrogates", list(MODELS)


def _ranges(e: Experiment) -> Iterator[tuple[bool, str]]:
    p = e.ensemble
    central = p.paradigm == "central"
    logits = p.answer == "logits"
    yield (
        not central or e.clients == 1,
        f"ensemble.paradigm 'central' needs clients = 1, got {e.clients}",
    )
    yield (
        not p.tunes or p.validation > 0,
        "nodes that tune need data of their own for it: set ensemble.validation",
    )
    yield (
        p.checkpoint != "best" or p.validation > 0,
        "ensemble.checkpoint 'best' chooses by validation loss: set ensemble.validation",
    )
    yield (
        "architecture" not in p.axes or bool(p.architectures),
        f"ensemble.paradigm {p.paradigm!r} needs ensemble.architectures",
    )
    yield (
        "mean_logit" not in p.votes or logits,
        f"the vote 'mean_logit' needs ensemble.answer = 'logits', got {p.answer!r}",
    )
    yield (
        p.answer != "labels" or set(p.votes) <= {"hard"},
        f"ensemble.answer = 'labels' allows the vote 'hard' only, got {', '.join(p.votes)}",
    )
    yield (
        p.paradigm != "fedavg" or not p.nodes,
        "ensemble.paradigm 'fedavg' averages one model: describe its nodes by [groups], not"
        " ensemble.nodes",
    )


def _attacker_ranges(e: Experiment) -> Iterator[tuple[bool, str]]:
    t = e.transfer
    yield (
        not t.attacks or bool(t.surrogates),
        "an attacker without surrogates makes no images: set transfer.surrogates",
    )
    yield (
        t.data != "disjoint" or bool(e.ensemble.paradigm),
        "transfer.data = 'disjoint' leaves the defenders half of the images: it needs [ensemble]",
    )


def _nodes(e: Experiment) -> Iterator[str]:
    """Check the resolved table: what the node's own keys name, and what goes together."""
    if not e.ensemble.paradigm:
        return
    for k, node in enumerate(nodes_of(e)):
        for name, kind, table in (
            (node.model, "model", list(MODELS)),
            (node.optimizer, "optimizer", list(OPTIMIZERS)),
            (node.schedule, "schedule", list(NODE_SCHEDULES)),
        ):
            if name not in table:
                yield f"node {k}: unknown {kind} {name!r}; {suggest(str(name), table)}"
        if not fits(node.optimizer, node.schedule):
            yield f"node {k}: a cyclic schedule needs momentum, {node.optimizer} has none"


def _votes(e: Experiment) -> Iterator[str]:
    """Check what a robust vote aggregates with, and what Byzantine members do."""
    if e.mode != "ensemble":
        return
    if e.pre:
        yield "a robust vote aggregates by the rule alone, without pre-aggregators"
    elif e.rule:
        try:
            aggregation.check(e.rule, n=e.clients)
            aggregation.check_unaided(e.rule, "a robust vote")
        except ValueError as error:
            yield from str(error).splitlines()
    name, settings = split(e.attack)
    if name not in (NONE, *ANSWERS):
        yield f"unknown attack {name!r} on answers; {suggest(name, [NONE, *ANSWERS])}"
    elif settings:
        yield f"attack {name!r} on answers has no parameters, got {', '.join(settings)}"
