"""A rule, an attack or a Flower strategy of your own, in one run beside ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedrobust import aggregation
from fedrobust.aggregation import tables
from fedrobust.attacks import ATTACKS
from fedrobust.experiment.schema import ConfigError


@contextmanager
def plugged(overrides: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Strategy | None]]:
    """Give functions and strategies among the overrides a name inside the block.

    Inside it they stand in the tables like any other plug-in, so that every check, and an attacker
    who knows the rule, sees them; after it the tables are as before.

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
        for key, table in (("rule", aggregation.RULES), ("attack", ATTACKS)):
            given = named.get(key)
            if not is_own(given):
                continue
            named[key] = name_of(given)
            if key == "rule":
                stack.enter_context(_entry(tables.MINIMUM, named[key], lambda f: 1))
            if key == "rule" and isinstance(given, Strategy):
                stock, given = given, aggregation.RULES["mean"]  # what an attacker can rehearse
            if not callable(given):
                raise ConfigError([f"{key} needs a name, a table or a function, got {given!r}"])
            stack.enter_context(_entry(table, named[key], given))
        yield named, stock


def is_own(given: Any) -> bool:
    """Whether a value is an object of the user's rather than a spec."""
    return given is not None and not isinstance(given, str | Mapping)


def name_of(given: Any) -> str:
    """Return the name under which an object runs: a function's own, or its class's."""
    while isinstance(given, functools.partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return "function" if name == "<lambda>" else name


@contextmanager
def _entry(table: dict[str, Callable[..., Any]], name: str, value: Any) -> Iterator[None]:
    if name in table:
        raise ConfigError([f"there is a plug-in {name!r} already: rename your own"])
    table[name] = value
    try:
        yield
    finally:
        del table[name]
