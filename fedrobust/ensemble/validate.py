"""What must hold of ``[ensemble]`` and ``[transfer]``, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from fedrobust.adversarial.objective import TRANSFER_ATTACKS
from fedrobust.ensemble import VOTES
from fedrobust.ensemble.assignment import fits
from fedrobust.ensemble.plan import NODE_SCHEDULES, PARADIGMS, master_of, nodes_of
from fedrobust.ensemble.practice import practice_of
from fedrobust.experiment.schema import EnsembleSettings, Experiment, NodeSettings, Transfer
from fedrobust.models import MODELS
from fedrobust.spec import SpecError, suggest
from fedrobust.training.augment import names_of
from fedrobust.training.optimizers import OPTIMIZERS

ANSWERS = ("labels", "probabilities", "logits")
LIES = ("flip", "random", "nan", "silence", "garbage", "stale", "exception")
CHECKPOINTS = ("last", "best")
ATTACKER_DATA = ("full", "disjoint", "share")
Named = tuple[str, str, tuple[str, ...] | list[str]]
Parser = Callable[[Any], Any]


def plan_parsers(integer: Parser, text: Parser) -> dict[str, Parser]:
    """Return readers of the types that these two tables add, by their annotation."""
    return {
        "tuple[str, ...]": lambda value: tuple(text(item) for item in _list(value)),
        "tuple[int, ...]": lambda value: tuple(integer(item) for item in _list(value)),
        "tuple[dict[str, Any], ...]": lambda value: tuple(_table(item) for item in _list(value)),
    }


def check_plan(e: Experiment) -> list[str]:
    """Return everything that is wrong with an experiment's plan and attacker."""
    errors = [
        f"unknown {kind} {name!r}; {suggest(name, list(table))}"
        for name, kind, table in (*_names(e.ensemble), *_attacker_names(e.transfer))
        if name not in table
    ]
    errors += [sentence for holds, sentence in (*_ranges(e), *_attacker_ranges(e)) if not holds]
    errors += _node_tables(e.ensemble)
    errors += _refusals(e)
    return errors or list(_nodes(e))


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
    if plan.paradigm:
        yield plan.paradigm, "ensemble.paradigm", PARADIGMS
    yield plan.optimizer, "ensemble.optimizer", list(OPTIMIZERS)
    yield plan.schedule, "ensemble.schedule", NODE_SCHEDULES
    yield plan.checkpoint, "ensemble.checkpoint", CHECKPOINTS
    yield plan.answer, "ensemble.answer", ANSWERS
    yield plan.lie, "ensemble.lie", LIES
    for key, table in (
        ("architectures", list(MODELS)),
        ("optimizers", list(OPTIMIZERS)),
        ("schedules", NODE_SCHEDULES),
        ("votes", list(VOTES)),
    ):
        for name in getattr(plan, key):
            yield name, f"name in ensemble.{key}", table


def _attacker_names(transfer: Transfer) -> Iterator[Named]:
    yield transfer.data, "transfer.data", ATTACKER_DATA
    yield transfer.step_scaling, "transfer.step_scaling", ("fixed", "proportional")
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
    yield p.lr > 0, f"ensemble.lr needs a positive number, got {p.lr}"
    yield 0 <= p.momentum < 1, f"ensemble.momentum needs [0, 1), got {p.momentum}"
    yield 0 <= p.validation < 1, f"ensemble.validation needs [0, 1), got {p.validation}"
    yield p.batch_size >= 2, f"ensemble.batch_size needs at least 2, got {p.batch_size}"
    yield p.query_images >= 1, f"ensemble.query_images needs at least 1, got {p.query_images}"
    yield p.epochs >= 1, f"ensemble.epochs needs at least 1, got {p.epochs}"
    yield p.trials >= 0, f"ensemble.trials needs at least 0, got {p.trials}"
    yield (
        len(p.tune_epochs) == 2 and min(p.tune_epochs, default=0) >= 1,
        f"ensemble.tune_epochs needs two numbers of at least 1, got {list(p.tune_epochs)}",
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
    yield p.train_images >= 0, f"ensemble.train_images needs at least 0, got {p.train_images}"
    yield p.test_images >= 0, f"ensemble.test_images needs at least 0, got {p.test_images}"
    yield p.probe_images >= 0, f"ensemble.probe_images needs at least 0, got {p.probe_images}"


def _attacker_ranges(e: Experiment) -> Iterator[tuple[bool, str]]:
    t = e.transfer
    yield (
        not t.attacks or bool(t.surrogates),
        "an attacker without surrogates makes no images: set transfer.surrogates",
    )
    yield 0 <= t.levels <= 255, f"transfer.levels needs 0 to 255, got {t.levels}"
    yield t.steps >= 0, f"transfer.steps needs at least 0, got {t.steps}"
    yield t.epochs >= 1, f"transfer.epochs needs at least 1, got {t.epochs}"
    yield t.images >= 1, f"transfer.images needs at least 1, got {t.images}"
    yield t.parts >= 1, f"transfer.parts needs at least 1, got {t.parts}"
    yield t.lr > 0, f"transfer.lr needs a positive number, got {t.lr}"
    yield t.batch_size >= 2, f"transfer.batch_size needs at least 2, got {t.batch_size}"


def _node_tables(plan: EnsembleSettings) -> list[str]:
    known = [f.name for f in fields(NodeSettings)]
    return [
        f"unknown key 'ensemble.nodes.{key}'; {suggest(key, known)}"
        for table in plan.nodes
        for key in table
        if key not in known
    ]


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


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise TypeError(f"needs a list, got {value!r}")
    return list(value)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"needs a list of tables, got {value!r}")
    return dict(value)
