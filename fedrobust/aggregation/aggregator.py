"""From a spec to a rule: preconditions, non-finite rows, memory across rounds, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.selection import weighted
from fedrobust.aggregation.tables import (
    MINIMUM,
    MIXINGS,
    PREAGGREGATORS,
    REMEMBER,
    RULES,
    WEIGHTS,
)
from fedrobust.spec import Spec, parameters, resolve, split

SUPPLIED = ("generator", "memory")


@dataclass(frozen=True)
class Outcome:
    """One aggregation.

    Attributes
    ----------
    aggregate
        (d,).
    state
        What the rule remembers for the next round; None where it remembers nothing.
    weights
        How much each update counted, (n,), 0 for the rejected; None where a rule takes values
        apart from their updates.
    """

    aggregate: Tensor
    state: Any
    weights: Tensor | None


@dataclass(frozen=True)
class Aggregator:
    """A rule with its pre-aggregators: ``init() -> state``, ``apply(updates, state, generator)``.

    Memory across rounds is a value: ``apply`` reads one and returns the next in its outcome.
    """

    init: Callable[[], Any]
    apply: Callable[..., Outcome]


def build(spec: Spec, *, pre: Sequence[Spec] = ()) -> Aggregator:
    """Build a rule from its spec; names and parameters are checked here, once.

    Raises
    ------
    SpecError
        For an unknown rule, pre-aggregator or parameter.
    """
    resolve(RULES, spec, kind="rule", supplied=SUPPLIED)
    for one in pre:
        resolve(PREAGGREGATORS, one, kind="pre-aggregator", supplied=SUPPLIED)

    def apply(
        updates: Tensor, state: Any = None, generator: torch.Generator | None = None
    ) -> Outcome:
        return _apply(updates, spec, tuple(pre), state, generator)

    return Aggregator(lambda: None, apply)


def aggregate(
    updates: Tensor,
    spec: Spec,
    *,
    pre: Sequence[Spec] = (),
    state: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Aggregate once: (n, d) -> (d,).

    Parameters
    ----------
    updates
        One row a client, floating point. Rows with a value that is not finite are set aside before
        anything else, and each of them counts against f.
    spec, pre
        The rule, and pre-aggregators applied before it in order.
    state
        What the rule remembers; fresh memory unless given. Never modified.

    Raises
    ------
    SpecError
        For an unknown name or parameter.
    ValueError
        If the updates are too few for the rule, or none is finite.
    """
    return build(spec, pre=pre).apply(updates, state, generator).aggregate


def preaggregate(
    updates: Tensor, spec: Spec, *, generator: torch.Generator | None = None
) -> Tensor:
    """Apply one pre-aggregator: (n, d) -> (m, d)."""
    function, settings = resolve(PREAGGREGATORS, spec, kind="pre-aggregator", supplied=SUPPLIED)
    _check_one(split(spec)[0], settings, len(updates))
    return function(updates, **settings, **_offer(function, generator=generator))


def check(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> None:
    """Check that n updates are enough for the rule and each pre-aggregator.

    Raises
    ------
    SpecError
        For an unknown name or parameter.
    ValueError
        ``krum with f=5 needs at least 13 updates, got 12``.
    """
    for one in pre:
        _, settings = resolve(PREAGGREGATORS, one, kind="pre-aggregator", supplied=SUPPLIED)
        name = split(one)[0]
        _check_one(name, settings, n)
        n = -(-n // settings["size"]) if name == "bucketing" else n
    name, settings = split(spec)
    resolve(RULES, spec, kind="rule", supplied=SUPPLIED)
    _check_one(name, settings, n)


def tolerated(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> int | None:
    """Return the largest f with which the rule accepts n updates; None where it takes no f."""
    name, settings = split(spec)
    if "f" not in parameters(RULES[name]):
        return None
    best = -1
    for f in range(n):
        try:
            check({"name": name, **settings, "f": f}, n=n, pre=pre)
        except ValueError:
            break
        best = f
    return best


def _check_one(name: str, settings: dict[str, Any], n: int) -> None:
    f = settings.get("f", 0)
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ValueError(f"{name} needs a whole f of at least 0, got {f!r}")
    needed = MINIMUM[name](f)
    if n < needed:
        told = f" with f={f}" if "f" in settings else ""
        raise ValueError(f"{name}{told} needs at least {needed} updates, got {n}")


def _apply(
    updates: Tensor,
    spec: Spec,
    pre: tuple[Spec, ...],
    state: Any,
    generator: torch.Generator | None,
) -> Outcome:
    if updates.dim() != 2 or not updates.is_floating_point():
        found = f"{tuple(updates.shape)} {updates.dtype}"
        raise TypeError(f"updates need shape (n, d) and a real floating type, got {found}")
    low, high = updates.aminmax(dim=1)  # one pass, no (n, d) mask; NaN propagates
    finite = torch.isfinite(low) & torch.isfinite(high)
    lost = int((~finite).sum())
    if lost == len(updates):
        raise ValueError(f"none of the {len(updates)} updates is finite")
    rows = updates[finite] if lost else updates
    chain = [_with_fewer(one, lost) for one in pre]
    rule = _with_fewer(spec, lost)
    check(rule, n=len(rows), pre=chain)
    mixing = None
    for one in chain:
        rows, mixing = _mix(rows, mixing, one, generator)
    outcome = _rule(rows, rule, state, generator)
    weights = outcome.weights
    if weights is not None:
        weights = weights if mixing is None else weights @ mixing
        weights = torch.zeros(len(updates), dtype=weights.dtype).masked_scatter(
            finite.cpu(), weights.cpu()
        )
    return Outcome(outcome.aggregate, outcome.state, weights)


def _with_fewer(spec: Spec, lost: int) -> Spec:
    """Count rows already set aside against f."""
    name, settings = split(spec)
    if lost and "f" in settings:
        settings["f"] = max(0, settings["f"] - lost)
    return {"name": name, **settings}


def _mix(
    rows: Tensor, before: Tensor | None, spec: Spec, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    function, settings = resolve(MIXINGS, spec, kind="pre-aggregator", supplied=SUPPLIED)
    mixing = function(rows, **settings, **_offer(function, generator=generator))
    after = mixing if before is None else mixing @ before
    return mixing.to(rows.dtype) @ rows, after


def _rule(rows: Tensor, spec: Spec, state: Any, generator: torch.Generator | None) -> Outcome:
    """Run the rule; one that is a weighted sum is run as its weights, once."""
    function, settings = resolve(RULES, spec, kind="rule", supplied=SUPPLIED)
    name = split(spec)[0]
    weigh = WEIGHTS.get(name)
    chosen = weigh or function
    found = chosen(rows, **settings, **_offer(chosen, generator=generator, memory=state))
    result = weighted(rows, found) if weigh else found
    remember = REMEMBER.get(name)
    memory = remember(state, rows, result) if remember else None
    return Outcome(result, memory, found if weigh else None)


def _offer(function: Callable[..., Any], **values: Any) -> dict[str, Any]:
    wanted = parameters(function)
    return {key: value for key, value in values.items() if key in wanted}
