"""What a rule needs before it runs: known names, enough updates, weights that it can use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fedrobust.aggregation.record import ASKED, SUPPLIED
from fedrobust.aggregation.tables import (
    PREAGGREGATORS,
    RULES,
    preaggregator_record,
    rule_record,
)
from fedrobust.failures import Refusal
from fedrobust.ranges import whole
from fedrobust.spec import Spec, SpecError, resolve, split


def check(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> None:
    """Check that n updates are enough for the rule and each pre-aggregator.

    Raises
    ------
    SpecError
        For an unknown name or parameter.
    Refusal
        ``krum with f=5 needs at least 13 updates, got 12``.
    """
    for one in pre:
        resolve_pre(one)
        # The next one, or the rule, sees as many rows as this one leaves.
        n = check_pre(one, n)
    resolve_rule(spec)
    name, settings = split(spec)
    _check_one(name, rule_record(name).minimum, settings, n)


def check_weighable(spec: Spec, *, pre: Sequence[Spec] = ()) -> None:
    """Check that the rule and each pre-aggregator have a weighted form.

    Raises
    ------
    ValueError
        ``krum has no weighted form: it counts updates, whatever they weigh``.
    """
    record = rule_record(split(spec)[0])
    if not record.weighable:
        raise ValueError(f"{record.name} has no weighted form: {record.no_weights}")
    for one in pre:
        if not preaggregator_record(split(one)[0]).keeps_weights:
            raise ValueError(f"{split(one)[0]} has no weighted form: its rows are no client's")


def check_unaided(spec: Spec, where: str) -> None:
    """Check that a rule asks for nothing but rows: used on what is no update of a model.

    Raises
    ------
    SpecError
        ``a robust vote cannot be lasa: it needs layers, which only updates of a model have``.
    """
    name, given = split(spec)
    if asked := [key for key in rule_record(name).needs if key not in given]:
        wanted = " and ".join(asked)
        raise SpecError(
            f"{where} cannot be {name}: it needs {wanted}, which only updates of a model have"
        )


def coefficient(spec: Spec, *, n: int, f: int, pre: Sequence[Spec] = ()) -> float | None:
    """Return the published kappa of a defence for n updates, f of them Byzantine.

    None where nothing is published: for the rule, for one of the pre-aggregators, or for a variant
    other than the paper's. See ``bounds``.
    """
    name, settings = split(spec)
    record = rule_record(name)
    if record.kappa is None or settings.get("variant", "paper") != "paper":
        return None
    kappa = record.kappa(n, f)
    # From the rule outwards: the last pre-aggregator stands next to it.
    for one in reversed(pre):
        with_pre = preaggregator_record(split(one)[0]).kappa
        if with_pre is None:
            return None
        kappa = with_pre(n, f, kappa)
    return kappa


def tolerated(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> int | None:
    """Return the largest f with which the rule accepts n updates; None where it takes no f.

    Raises
    ------
    ValueError
        If n updates are too few even with f = 0.
    """
    name, settings = split(spec)
    if not rule_record(name).takes_f:
        return None
    check({"name": name, **settings, "f": 0}, n=n, pre=pre)
    # A larger f never needs fewer updates: the first refusal ends the search.
    for f in range(1, n):
        try:
            check({"name": name, **settings, "f": f}, n=n, pre=pre)
        except Refusal:
            return f - 1
    return n - 1


def resolve_rule(spec: Spec) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Look a rule up; what the server or the run knows need not be in the spec, but may."""
    asked = tuple(key for key in ASKED if key not in split(spec)[1])
    _, settings = resolve(RULES, spec, kind="rule", supplied=SUPPLIED + asked)
    return rule_record(split(spec)[0]).compute, settings


def resolve_pre(spec: Spec) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Look a pre-aggregator up, as the matrix that it mixes by."""
    _, settings = resolve(PREAGGREGATORS, spec, kind="pre-aggregator", supplied=SUPPLIED)
    return preaggregator_record(split(spec)[0]).compute, settings


def check_pre(spec: Spec, n: int) -> int:
    """Check that n rows are enough and return how many the pre-aggregator leaves."""
    name, settings = split(spec)
    record = preaggregator_record(name)
    _check_one(name, record.minimum, settings, n)
    return record.leaves(n, settings)


def _check_one(
    name: str, minimum: Callable[[dict[str, Any]], int], settings: dict[str, Any], n: int
) -> None:
    if "f" in settings:
        whole(settings["f"], name, "f")
    needed = minimum(settings)
    if n < needed:
        told = f" with f={settings['f']}" if "f" in settings else ""
        raise Refusal(f"{name}{told} needs at least {needed} updates, got {n}")


def with_fewer(spec: Spec, lost: int) -> Spec:
    """Count rows already set aside against f."""
    name, settings = split(spec)
    if lost and "f" in settings:
        # split made this dict anew: the caller's spec is not touched.
        settings["f"] = max(0, whole(settings["f"], name, "f") - lost)
    return {"name": name, **settings}
