"""Every way to write a rule down, as one pair: the rule, and its pre-aggregators."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from fedrobust.aggregation import PREAGGREGATORS, RULES
from fedrobust.spec import Spec, SpecError, parameters, split, suggest

Function = Callable[[Tensor], Tensor]
Rule = Spec | Function


def read_rule(rule: Rule, pre: Sequence[Spec] = ()) -> tuple[Rule, tuple[Spec, ...]]:
    """Unfold a rule's text.

    Parameters
    ----------
    rule
        A name, a table ``{"name": "krum", "f": 2}``, a text such as ``"krum:f=2"``,
        ``"nnm+krum:f=2"`` or ``"multi_krum:f=2,m=5"``, or a function (n, d) -> (d,). An f that
        stands behind one part of a chain counts for every part that needs one.
    pre
        Pre-aggregators, spelled likewise; those of the text follow them.

    Raises
    ------
    SpecError
        For text that cannot be read, or something that is neither text, table nor function.

    Notes
    -----
    Names that are not ours are looked for in the files of ``fedrobust.plugins.use``, then among the
    plug-ins of installed packages.
    """
    before = tuple(_unfold(one)[-1] for one in pre)
    if isinstance(rule, str):
        *chain, last = _unfold(rule)
        return last, (*before, *chain)
    if callable(rule):
        return rule, before
    name, given = split(rule)
    *chain, last = _unfold(name)
    f = {"f": given["f"]} if "f" in given else {}
    chain = [_with_f(one, f, PREAGGREGATORS) for one in chain]
    return {**_table(last), **given}, (*before, *chain)


def read_spec(text: str, kind: str) -> dict[str, Any]:
    """Read ``"name:key=value,key=value"``, without looking anything up.

    Raises
    ------
    SpecError
        For a setting without a value.
    """
    name, _, settings = text.partition(":")
    spec: dict[str, Any] = {"name": name.strip()}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise SpecError(f"a {kind} is written name:key=value, got {text!r}")
        spec[key.strip()] = _value(value.strip())
    return spec


def rule_name(rule: Rule, pre: Sequence[Spec] = ()) -> str:
    """Return ``"nnm+krum:f=2"``, the text that ``read_rule`` reads."""
    if callable(rule):
        return str(getattr(rule, "__name__", type(rule).__name__))
    parts = []
    for one in (*pre, rule):
        name, given = split(one)
        settings = ",".join(f"{key}={value}" for key, value in given.items())
        parts.append(f"{name}:{settings}" if settings else name)
    return "+".join(parts)


def _unfold(spec: Spec) -> list[dict[str, Any]]:
    if not isinstance(spec, str):
        return [_table(spec)]
    parts = [read_spec(text.strip(), "rule") for text in spec.split("+")]
    _provide(part["name"] for part in parts)
    shared = {key: value for part in parts for key, value in part.items() if key == "f"}
    tables = [PREAGGREGATORS] * (len(parts) - 1) + [{**PREAGGREGATORS, **RULES}]
    return [_with_f(part, shared, table) for part, table in zip(parts, tables, strict=True)]


def _provide(names: Iterable[str]) -> None:
    """Look in the files of ``plugins.use`` and in packages for rules that are not ours."""
    for name in names:
        if name not in RULES and name not in PREAGGREGATORS:
            from fedrobust import plugins  # models and data sets come along

            plugins.provide({"rule": name})


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)  # numbers, text and lists, but no code
    except (SyntaxError, ValueError):
        return {"true": True, "false": False}.get(text, text)


def _with_f(part: dict[str, Any], f: dict[str, Any], table: Any) -> dict[str, Any]:
    """Give a part the chain's f if it takes one and has none of its own."""
    name = part["name"]
    if name not in table:
        kind = "rule" if table is not PREAGGREGATORS else "pre-aggregator"
        raise SpecError(f"unknown {kind} {name!r}; {suggest(name, list(table))}")
    return {**f, **part} if f and "f" in parameters(table[name]) else part


def _table(spec: Spec) -> dict[str, Any]:
    name, given = split(spec)
    return {"name": name, **given}
