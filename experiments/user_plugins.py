"""A rule, an attack or a Flower strategy of your own, in one run beside ours."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedrobust import aggregation, attacks
from fedrobust.experiment.schema import ConfigError


@contextmanager
def plugged(overrides: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Strategy | None]]:
    """Give functions, records and strategies among the overrides a name inside the block.

    A rule with memory is given as ``aggregation.Rule``, an attack with memory (or with another
    knowledge than everything) as ``attacks.Attack``. Inside the block they stand in the tables like
    any other plug-in, so that every check, and an attacker who knows the rule, sees them; after it
    the tables are as before.

    Yields
    ------
    The overrides with names in the place of objects, and the strategy if there was one.

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
            named[key] = name_of(given)
            if key == "rule" and isinstance(given, Strategy):
                stock, given = given, aggregation.RULES["mean"]  # what an attacker can rehearse
            try:
                stack.enter_context(record_of(given, named[key]))
            except ValueError as error:
                raise ConfigError([str(error)]) from error
        yield named, stock


def is_own(given: Any) -> bool:
    """Whether a value is an object of the user's rather than a spec."""
    return given is not None and not isinstance(given, str | Mapping)


def name_of(given: Any) -> str:
    """Return the name under which an object runs: a function's own, or its class's."""
    if isinstance(given, aggregation.Rule | attacks.Attack):
        return given.name
    while isinstance(given, functools.partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return "function" if name == "<lambda>" else name


def _rule(given: Any, name: str) -> AbstractContextManager[None]:
    if isinstance(given, aggregation.Rule):
        return aggregation.installed(given)
    _refuse_what_is_no_function("rule", given)
    return aggregation.installed(aggregation.Rule(name=name, compute=given))


def _attack(given: Any, name: str) -> AbstractContextManager[None]:
    if isinstance(given, attacks.Attack):
        return attacks.installed(given)
    _refuse_what_is_no_function("attack", given)
    return attacks.installed(attacks.Attack(name=name, craft=given))


def _refuse_what_is_no_function(key: str, given: Any) -> None:
    if not callable(given):
        raise ValueError(f"{key} needs a name, a table or a function, got {given!r}")
