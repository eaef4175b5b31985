"""The kinds of plug-ins: the table of each, and how one of another's enters it."""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

from torch import nn

from fedrobust import aggregation, attacks, data, models
from fedrobust.attacks import threat_model
from fedrobust.data.given import as_dataset
from fedrobust.models import GivenModel
from fedrobust.spec import InputError, by_keyword
from fedrobust.training import METRICS, TASK_LOSSES, Metric

# Columns of a row: a metric of that name would write over them.
RESERVED = (
    "round",
    "seconds",
    "loss",
    "replies",
    "rejected",
    "kept",
    "weights",
    "alarms",
    "impact",
)


class PlugInError(InputError):
    """A plug-in that cannot be loaded, or is not what its kind asks for."""


@dataclass(frozen=True)
class Part:
    """One plug-in.

    Attributes
    ----------
    kind, name
        A key of ``KINDS``, and the name by which configurations ask for it.
    value
        The function or object.
    origin
        Where it is from, in words: "net.py", "acme-fl 1.2".
    digest
        Hexadecimal digits that change with its source, or with the values that it holds.
    """

    kind: str
    name: str
    value: Any
    origin: str
    digest: str = ""

    @property
    def told(self) -> str:
        """Its origin and digest."""
        return f"{self.origin} {self.digest}".strip()


@contextmanager
def _entered(table: MutableMapping[str, Any], what: str, name: str, value: Any) -> Iterator[None]:
    if name in table:
        raise PlugInError(f"there is a {what} {name!r} already: rename your own")
    table[name] = value
    try:
        yield
    finally:
        del table[name]


def _model(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, nn.Module):
        _callable("model", name, value, "a function that returns an nn.Module, or such a module")
    return _entered(models.MODELS, "model", name, GivenModel(name, value))


def _data(name: str, value: Any) -> AbstractContextManager[None]:
    held: dict[Path | None, data.Dataset] = {}

    def load(root: Path | None, download: bool) -> data.Dataset:
        if root not in held:
            held.clear()  # one copy in memory, not one for each root
            held[root] = as_dataset(name, made(value, root=root, download=download))
        return held[root]

    if "path" in _parameters(value):
        load.reads = lambda path: value(path=path)  # type: ignore[attr-defined]
    load.__doc__ = inspect.getdoc(value) if callable(value) else "Data that were handed over."
    return _entered(data.DATASETS, "data set", name, load)


def made(value: Any, **offered: Any) -> Any:
    """Call a function with as much of the offered as it takes; return anything else as it is."""
    if not _is_function(value):
        return value
    return value(**{key: given for key, given in offered.items() if key in _parameters(value)})


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, partial) or inspect.ismethod(value)


def _parameters(value: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(value).parameters if _is_function(value) else {}


def _partition(name: str, value: Any) -> AbstractContextManager[None]:
    _callable("partition", name, value, "a function (labels, *, clients, seed)")

    @wraps(value)
    def own(labels: Any, **settings: Any) -> Any:
        return value(labels, **settings)

    own.own = True  # type: ignore[attr-defined]
    return _entered(data.PARTITIONERS, "partition", name, own)


def _loss(name: str, value: Any) -> AbstractContextManager[None]:
    _callable("loss", name, value, "a function (outputs, targets)")
    return _entered(TASK_LOSSES, "loss", name, value)


def _metric(name: str, value: Any) -> AbstractContextManager[None]:
    if name in RESERVED:
        raise PlugInError(f"a metric may not be called {name!r}: rows have a column of that name")
    if not isinstance(value, Metric):
        _callable("metric", name, value, "a function (outputs, targets), or a Metric")
        value = Metric(value, getattr(value, "best", "max"))
    return _entered(METRICS, "metric", name, value)


def _rule(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, aggregation.Rule):
        _callable("rule", name, value, "a function (updates, *, f), or a Rule")
        value = aggregation.Rule(name=name, compute=by_keyword(value))
    return aggregation.installed(replace(value, name=name))


def _attack(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, attacks.Attack):
        _callable("attack", name, value, "a function (honest, *, n, f), or an Attack")
        value = attacks.Attack(name=name, craft=by_keyword(value))
    return attacks.installed(replace(value, name=name))


def _callable(kind: str, name: str, value: Any, form: str) -> None:
    if not callable(value):
        raise PlugInError(f"{kind} {name!r} needs {form}, got {type(value).__name__}")


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: the names that are taken, how one enters, its group of entry points."""

    table: Mapping[str, Any]
    enter: Callable[[str, Any], AbstractContextManager[None]]
    group: str


EVERY_ATTACK = ChainMap[str, Any](
    {threat_model.NONE: None}, attacks.ATTACKS, attacks.POISONS, attacks.TRAINED,
    dict(threat_model.FAULTS), dict(threat_model.ANSWERS),
)  # fmt: skip

KINDS: dict[str, Kind] = {
    "model": Kind(models.MODELS, _model, "fedrobust.models"),
    "data": Kind(data.DATASETS, _data, "fedrobust.datasets"),
    "partition": Kind(data.PARTITIONERS, _partition, "fedrobust.partitions"),
    "loss": Kind(TASK_LOSSES, _loss, "fedrobust.losses"),
    "metric": Kind(METRICS, _metric, "fedrobust.metrics"),
    "rule": Kind(aggregation.RULES, _rule, "fedrobust.rules"),
    "attack": Kind(EVERY_ATTACK, _attack, "fedrobust.attacks"),
}
