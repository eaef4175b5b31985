"""A rule, an attack or a Flower strategy of your own, in one run beside ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from flwr.serverapp.strategy import Strategy

from experiments.plugin_identity import accepting, name_of, spec_of
from fedrobust import aggregation, attacks
from fedrobust.experiment.schema import ConfigError

__all__ = ["is_own", "name_of", "plugged"]


@contextmanager
def plugged(overrides: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Strategy | None]]:
    """Give functions, records and strategies among the overrides a name inside the block.

    A rule with memory is given as ``aggregation.Rule``, an attack with memory (or with another
    knowledge than everything) as ``attacks.Attack``. Inside the block they stand in the tables like
    any other plug-in, so that every check, and an attacker who knows the rule, sees them; after it
    the tables are as before.

    Yields
    ------
    The overrides with specs in the place of objects (``plugin_identity.spec_of``), and the
    strategy if there was one.

    Raises
    ------
    ConfigError
        If a name is taken, or something else than a function or strategy was given.
    """
    named, stock = dict(overrides), None
    with ExitStack() as stack:
        for key, record_of in (("rule", _rule), ("attack", _attack)):
            given = named.get(key)
            if not is_own(given):
                continue
            named[key] = spec = spec_of(given)
            if key == "rule" and isinstance(given, Strategy):
                stock, given = given, aggregation.RULES["mean"]  # what an attacker can rehearse
            try:
                stack.enter_context(record_of(given, spec))
            except ValueError as error:
                raise ConfigError([str(error)]) from error
        yield named, stock


def is_own(given: Any) -> bool:
    """Whether a value is an object of the user's rather than a spec."""
    return given is not None and not isinstance(given, str | Mapping)


def _rule(given: Any, spec: dict[str, Any]) -> AbstractContextManager[None]:
    if not isinstance(given, aggregation.Rule):
        _refuse_what_is_no_function("rule", given)
        given = aggregation.Rule(name=spec["name"], compute=_taking(given, spec))
    return aggregation.installed(replace(given, name=spec["name"]))


def _attack(given: Any, spec: dict[str, Any]) -> AbstractContextManager[None]:
    if not isinstance(given, attacks.Attack):
        _refuse_what_is_no_function("attack", given)
        given = attacks.Attack(name=spec["name"], craft=_taking(given, spec))
    return attacks.installed(replace(given, name=spec["name"]))


def _taking(function: Callable[..., Any], spec: dict[str, Any]) -> Callable[..., Any]:
    """Return the function, with the settings of its object among its own."""
    settings = {key: value for key, value in spec.items() if key != "name"}
    known = inspect.signature(function).parameters
    return function if known.keys() >= settings.keys() else accepting(function, settings)


def _refuse_what_is_no_function(key: str, given: Any) -> None:
    if not callable(given):
        raise ValueError(f"{key} needs a name, a table or a function, got {given!r}")
