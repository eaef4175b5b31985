"""Objects of your own in one run beside ours: model, data, loss, metrics, partition, rule, attack.

Each gets a name for the configuration (``plugin_identity``) and a place in its table, for as long
as the run lasts. A Flower strategy may stand in the place of the rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.serverapp.strategy import Strategy
from torch import nn

from experiments.plugin_identity import Numbers, accepting, mark, name_of, spec_of
from fedrobust import aggregation, attacks, plugins
from fedrobust.data import Dataset, as_dataset
from fedrobust.experiment.schema import ConfigError
from fedrobust.plugins import Part
from fedrobust.spec import InputError

__all__ = ["Plugged", "is_own", "name_of", "own_objects", "plugged"]
ORIGIN = "an object of yours"
NUMBERS: dict[str, Numbers] = {
    kind: Numbers() for kind in ("model", "data", "loss", "metric", "partition")
}


@dataclass(frozen=True)
class Plugged:
    """What a user's objects became.

    Attributes
    ----------
    named
        The overrides with names and specs in the place of objects.
    parts
        The objects with their names, for another process to put into its tables.
    stock
        The Flower strategy, if there was one.
    """

    named: dict[str, Any]
    parts: tuple[Part, ...]
    stock: Strategy | None = None


@contextmanager
def plugged(overrides: Mapping[str, Any]) -> Iterator[Plugged]:
    """Give objects among the overrides a name inside the block; see ``fedrobust.simulate``.

    A rule with memory is given as ``aggregation.Rule``, an attack with memory (or with another
    knowledge than everything) as ``attacks.Attack``. Inside the block they stand in the tables like
    any other plug-in, so that every check, and an attacker who knows the rule, sees them; after it
    the tables are as before.

    Raises
    ------
    ConfigError
        If a name is taken, or an object is not what its key asks for.
    """
    named, parts, stock = dict(overrides), [], None
    for key, given in own_objects(overrides).items():
        if key == "rule" and isinstance(given, Strategy):
            stock = given
        named[key], found = MAKERS[key](given)
        parts += found
    with ExitStack() as stack:
        for part in parts:
            try:
                stack.enter_context(plugins.installed(part))
            except InputError as error:
                raise ConfigError([str(error).removeprefix(f"{ORIGIN}: ")]) from error
        yield Plugged(named, tuple(parts), stock)


def own_objects(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are objects of the user's, by key."""
    return {key: settings[key] for key in MAKERS if key in settings and is_own(settings[key], key)}


def is_own(given: Any, key: str = "rule") -> bool:
    """Whether a value is an object of the user's rather than what a configuration can hold."""
    if key == "metrics":
        each = given.values() if isinstance(given, Mapping) else _listed(given)
        return any(not isinstance(one, str) for one in each)
    # A mapping is a spec, but of data it is the arrays themselves.
    plain = (str,) if key == "data" else (str, Mapping)
    return given is not None and not isinstance(given, plain)


def _rule(given: Any) -> tuple[dict[str, Any], list[Part]]:
    spec = spec_of(given)
    if isinstance(given, Strategy):
        given = aggregation.RULES["mean"]  # what an attacker can rehearse
    if not isinstance(given, aggregation.Rule):
        _refuse_what_is_no_function("rule", given)
        given = _taking(given, spec)
    return spec, [Part("rule", spec["name"], given, ORIGIN)]


def _attack(given: Any) -> tuple[dict[str, Any], list[Part]]:
    spec = spec_of(given)
    if not isinstance(given, attacks.Attack):
        _refuse_what_is_no_function("attack", given)
        given = _taking(given, spec)
    return spec, [Part("attack", spec["name"], given, ORIGIN)]


def _model(given: Any) -> tuple[str, list[Part]]:
    held = isinstance(given, nn.Module)
    digest = plugins.value_digest("model", given) if held else ""
    # A module is told by its values, a function by its code.
    name = NUMBERS["model"].named(name_of(given), digest or mark(given, {}))
    return name, [Part("model", name, given, ORIGIN, digest)]


def _data(given: Any) -> tuple[str, list[Part]]:
    called = name_of(given) if not isinstance(given, tuple | list | dict) else "data"
    dataset: Dataset = as_dataset(called, plugins.made(given))
    digest = plugins.value_digest("data", dataset)
    name = NUMBERS["data"].named(called, digest)
    return name, [Part("data", name, dataset, ORIGIN, digest)]


def _loss(given: Any) -> tuple[dict[str, Any], list[Part]]:
    name = NUMBERS["loss"].named(name_of(given), mark(given, {}))
    return {"name": name}, [Part("loss", name, given, ORIGIN)]


def _partition(given: Any) -> tuple[dict[str, Any], list[Part]]:
    name = NUMBERS["partition"].named(name_of(given), mark(given, {}))
    return {"name": name}, [Part("partition", name, given, ORIGIN)]


def _metrics(given: Any) -> tuple[list[str], list[Part]]:
    """Name each metric: by its key, or by its function; names of ours stand beside them."""
    table = given if isinstance(given, Mapping) else {name_of(one): one for one in _listed(given)}
    names, parts = [], []
    for called, metric in table.items():
        if isinstance(metric, str):
            names.append(metric)
            continue
        names.append(NUMBERS["metric"].named(called, mark(_computed(metric), {})))
        parts.append(Part("metric", names[-1], metric, ORIGIN))
    return names, parts


def _computed(metric: Any) -> Any:
    return getattr(metric, "compute", metric)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


MAKERS: dict[str, Callable[[Any], tuple[Any, list[Part]]]] = {
    "rule": _rule,
    "attack": _attack,
    "model": _model,
    "data": _data,
    "loss": _loss,
    "partition": _partition,
    "metrics": _metrics,
}


def _taking(function: Callable[..., Any], spec: dict[str, Any]) -> Callable[..., Any]:
    """Return the function, with the settings of its object among its own."""
    settings = {key: value for key, value in spec.items() if key != "name"}
    known = inspect.signature(function).parameters
    return function if known.keys() >= settings.keys() else accepting(function, settings)


def _refuse_what_is_no_function(key: str, given: Any) -> None:
    if not callable(given):
        raise ConfigError([f"{key} needs a name, a table or a function, got {given!r}"])
