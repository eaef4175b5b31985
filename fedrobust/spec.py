"""Plug-in specs: a name, or ``{"name": ..., **parameters}``, looked up in one plain table."""

from __future__ import annotations

import difflib
import functools
import inspect
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

Spec = str | Mapping[str, Any]
Table = Mapping[str, Callable[..., Any]]


class InputError(ValueError):
    """What a user gave is wrong, in a sentence; the command line ends with its exit code.

    It stands here, where no algorithm is imported, so that a wrong call ends quickly.
    """

    exit_code = 2


class SpecError(InputError):
    """A spec that names nothing in its table, or whose parameters do not fit."""


def suggest(wrong: str, allowed: list[str]) -> str:
    """Return "did you mean ..." for a near miss, otherwise the list of what is allowed."""
    near = difflib.get_close_matches(wrong, allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(allowed))}"


def split(spec: Spec) -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its parameters."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise SpecError(f"a spec is a name or a table with a 'name', got {spec!r}")
    return spec["name"], {key: value for key, value in spec.items() if key != "name"}


def parse_value(text: str) -> Any:
    """Read a command-line value as TOML, or as the bare string that it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_spec(value: Any) -> dict[str, Any]:
    """Turn a spec in any notation into its table: ``"alie"``, ``"alie:z=1.5"``, or a table."""
    if isinstance(value, str):
        name, _, settings = value.partition(":")
        pairs = [pair.partition("=") for pair in settings.split(",") if pair]
        return {"name": name.strip()} | {k.strip(): parse_value(v.strip()) for k, _, v in pairs}
    name, given = split(value)
    return {"name": name} | given


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a plug-in: the settings that a spec may carry."""
    try:
        return dict(_known_parameters(function))
    except TypeError:  # an object that cannot be hashed, or that has no signature
        return _keyword_only(function)


@functools.lru_cache(maxsize=1024)  # a signature takes as long as a small aggregation
def _known_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return _keyword_only(function)


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(function)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def by_keyword(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a user's ``def mine(updates, f)`` be called, and read, as ``def mine(updates, *, f)``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled code that tells none
        return function
    first, *others = signature.parameters.values() or (None,)
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if first is None or all(parameter.kind is not plain for parameter in others):
        return function

    @functools.wraps(function)
    def called(rows: Any, **settings: Any) -> Any:
        return function(rows, **settings)

    settings = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if p.kind is plain else p for p in others
    ]
    called.__signature__ = signature.replace(parameters=[first, *settings])  # type: ignore[attr-defined]
    return called


def resolve(
    table: Table, spec: Spec, *, kind: str, supplied: tuple[str, ...] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Look a spec up in its table and check its parameters by name.

    Parameters
    ----------
    table
        Name -> function; settings are the function's keyword-only parameters.
    spec
        A name or ``{"name": ..., **parameters}``.
    kind
        What the table holds, for the error: "rule", "attack".
    supplied
        Keyword-only parameters that the caller provides, not the spec (generator, memory).

    Raises
    ------
    SpecError
        For an unknown name, an unknown parameter, or a required one that is missing.
    """
    name, given = split(spec)
    if name not in table:
        raise SpecError(f"unknown {kind} {name!r}; {suggest(name, list(table))}")
    settings = {k: p for k, p in parameters(table[name]).items() if k not in supplied}
    for key in given:
        if key not in settings:
            hint = suggest(key, list(settings)) if settings else "it has no parameters"
            raise SpecError(f"{kind} {name!r} has no parameter {key!r}; {hint}")
    for key, parameter in settings.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise SpecError(f"{kind} {name!r} needs the parameter {key!r}")
    return table[name], given


def radius_hint(eps: float) -> str:
    """Return "; did you mean ..." for a radius that looks like one in levels of 0..255."""
    return f"; did you mean {eps:g}/255?" if 1 < eps <= 255 else ""
