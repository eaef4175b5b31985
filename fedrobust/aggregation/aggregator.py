"""From a spec to a rule: preconditions, non-finite rows, memory across rounds, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import scaling
from fedrobust.aggregation.columns import by_blocks
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.preconditions import (
    check,
    check_pre,
    check_weighable,
    resolve_pre,
    resolve_rule,
    with_fewer,
)
from fedrobust.aggregation.reads import all_finite
from fedrobust.aggregation.record import MISSING, PreAggregator, Rule, mixed, weighted
from fedrobust.aggregation.survey import Survey, at_hand, finite_rows, survey
from fedrobust.aggregation.tables import is_built_in, preaggregator_record, rule_record
from fedrobust.aggregation.weighting import shares
from fedrobust.failures import REFUSALS, Refusal, blamed
from fedrobust.matrix import computable, matrix, narrowed
from fedrobust.returned import check_returned
from fedrobust.spec import Spec, parameters, split

NUMERICAL = (ArithmeticError, ValueError, torch.linalg.LinAlgError)
Given = dict[str, Callable[[], Any]]
Server = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Aggregator:
    """A rule with its pre-aggregators.

    Memory across rounds is a value: ``apply`` reads one and returns the next in its outcome.

    Attributes
    ----------
    init
        ``() -> state``.
    apply
        ``(updates, state=None, generator=None, *, clients=None, server=None, weights=None) ->
        Outcome``. Rules that remember each client's past need ``clients``, the rows' clients, where
        rows may be missing. ``server`` maps names to functions that compute what a rule asks for:
        "root" and "loss" from data of the server's own, "layers" and "model" of the model.
        ``weights`` (n,) are how much each client counts: the operator's, never a claim (see
        ``weighting.truncated``).
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
    resolve_rule(spec)
    for one in pre:
        resolve_pre(one)

    def apply(
        updates: Any,
        state: Any = None,
        generator: torch.Generator | None = None,
        *,
        clients: Sequence[int] | None = None,
        server: Server | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> Outcome:
        rows = matrix(updates)
        numbers = torch.arange(len(rows)) if clients is None else torch.tensor(list(clients))
        # Functions, called only if the rule asks: a root update costs a training step.
        given = {"memory": lambda: state, "generator": lambda: generator, **(server or {})}
        if weights is not None:
            check_weighable(spec, pre=pre)
            counted = shares(weights, len(rows))
            given["weights"] = lambda: counted
        return _apply(rows, spec, tuple(pre), numbers, given)

    return Aggregator(lambda: None, apply)


def aggregate(
    updates: Tensor,
    spec: Spec,
    *,
    pre: Sequence[Spec] = (),
    state: Any = None,
    generator: torch.Generator | None = None,
    weights: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Aggregate once: (n, d) -> (d,).

    Parameters
    ----------
    updates
        One row a client, floating point: a tensor, a numpy array, or a list of rows. Rows with a
        value that is not finite are set aside before anything else, and each of them counts
        against f. Halves are computed in float32, and the result is a half again.
    spec, pre
        The rule, and pre-aggregators applied before it in order.
    state
        What the rule remembers; fresh memory unless given. Never modified.
    weights
        How much each client counts (n,), in any unit; equal unless given. The operator's own
        weights or truncated claims: a claim as it is would be an attacker's. Rules without a
        weighted form refuse them.

    Raises
    ------
    SpecError
        For an unknown name or parameter.
    ValueError
        If the updates are too few for the rule, none is finite, a setting is out of its range, or
        the aggregate does not fit into the updates' type.
    TypeError
        For updates that are no real floating-point matrix: whole and complex numbers are refused.
    """
    return build(spec, pre=pre).apply(updates, state, generator, weights=weights).aggregate


def preaggregate(
    updates: Tensor, spec: Spec, *, generator: torch.Generator | None = None
) -> Tensor:
    """Apply one pre-aggregator: (n, d) -> (m, d).

    As in ``aggregate``, rows that are not finite are set aside first and count against f.

    Raises
    ------
    SpecError, ValueError, TypeError
        As ``aggregate``.
    """
    given = matrix(updates)
    resolve_pre(spec)
    found = _surveyed(computable(given), preaggregator_record(split(spec)[0]), spec)
    rows, _, largest = finite_rows(found)
    one = with_fewer(spec, len(given) - len(rows))
    name = split(one)[0]
    check_pre(one, len(rows))
    follows = preaggregator_record(name).follows_scale
    rows, unit = scaling.in_range(rows, largest, follows_scale=follows)
    with at_hand(found):
        mixing = _mixing(rows, one, {"generator": lambda: generator})
    result = mixed(rows, mixing)
    return _finished(result * unit if unit != 1 else result, given.dtype, name)


def _apply(
    updates: Tensor, spec: Spec, pre: tuple[Spec, ...], clients: Tensor, given: Given
) -> Outcome:
    if len(clients) != len(updates):
        raise ValueError(f"{len(updates)} updates need as many clients, got {len(clients)}")
    name = split(spec)[0]
    work = computable(updates)
    if name == "mean" and not pre and len(work) and "weights" not in given:
        outcome = _rule(work, spec, given)
        # A finite mean shows that every row is finite: there is no need to read them twice.
        if all_finite(outcome.aggregate):
            return replace(outcome, aggregate=narrowed(outcome.aggregate, updates.dtype, name))
    first = preaggregator_record(split(pre[0])[0]) if pre else rule_record(name)
    found = _surveyed(work, first, pre[0] if pre else spec)
    rows, finite, largest = finite_rows(found)
    lost = len(updates) - len(rows)
    chain = [with_fewer(one, lost) for one in pre]
    rule = with_fewer(spec, lost)
    check(rule, n=len(rows), pre=chain)
    rows, unit = _in_range(rows, largest, chain, name)
    if "weights" in given:
        # Shares of those who are left: they have to add up to 1 again.
        left = given["weights"]()[finite]
        given = given | {"weights": lambda: shares(left, len(rows))}
    with at_hand(found):
        outcome = _chain(rows, chain, rule, given | {"clients": lambda: clients[finite]})
    aggregate = outcome.aggregate * unit if unit != 1 else outcome.aggregate
    weights = _spread(outcome.weights, finite)
    return Outcome(_finished(aggregate, updates.dtype, name), outcome.state, weights)


def _surveyed(work: Tensor, first: Rule | PreAggregator, spec: Spec) -> Survey:
    """Read the updates once: for what is not finite, and for what the first step looks at."""
    return survey(work, first.looks_at(split(spec)[1]))


def _in_range(
    rows: Tensor, largest: Tensor, chain: Sequence[Spec], name: str
) -> tuple[Tensor, float]:
    """Scale the rows where squares are taken; coordinate-wise rules and the mean take none."""
    record = rule_record(name)
    if not chain and (record.coordinate_wise or name == "mean"):
        return rows, 1.0
    records = [preaggregator_record(split(one)[0]) for one in chain]
    follows = record.follows_scale and all(one.follows_scale for one in records)
    return scaling.in_range(rows, largest, follows_scale=follows)


def _finished(result: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a result in the updates' type, or say that it is none."""
    # One read: ``isfinite`` of a matrix would make several of its size.
    checked = result if result.dim() == 1 else survey(result, "").largest
    if not all_finite(checked):
        kind = str(result.dtype).removeprefix("torch.")
        raise Refusal(f"{name}: the result of finite updates is not finite in {kind}")
    return narrowed(result.detach(), dtype, name)


def _spread(weights: Tensor | None, finite: Tensor) -> Tensor | None:
    """Give the rows that were set aside weight 0."""
    if weights is None:
        return None
    spread = torch.zeros(len(finite), dtype=weights.dtype)
    spread[finite] = weights.cpu()
    return spread


def _chain(rows: Tensor, chain: Sequence[Spec], rule: Spec, given: Given) -> Outcome:
    """Mix the rows, run the rule; weights are traced back to the rows before the mixing."""
    before: Tensor | None = None
    for i, one in enumerate(chain):
        mixing = _mixing(rows, one, given)
        if i + 1 == len(chain) and rule_record(split(rule)[0]).coordinate_wise:
            return _by_columns(rows, mixing, rule, given)
        before = mixing if before is None else mixing @ before
        rows = mixed(rows, mixing)
        if len(mixing) != mixing.shape[1]:  # a bucket is no client: it is known by its place
            given = given | {"clients": partial(torch.arange, len(mixing))}
    outcome = _rule(rows, rule, given)
    if outcome.weights is None or before is None:
        return outcome
    return Outcome(outcome.aggregate, outcome.state, outcome.weights @ before)


def _mixing(rows: Tensor, spec: Spec, given: Given) -> Tensor:
    function, settings = resolve_pre(spec)
    return function(rows, **settings, **_offer(function, settings, given))


def _by_columns(rows: Tensor, mixing: Tensor, rule: Spec, given: Given) -> Outcome:
    """Mix and aggregate block by block: the mixed matrix never exists as a whole."""
    function, settings = resolve_rule(rule)
    settings = settings | _offer(function, settings, given)
    return Outcome(
        by_blocks(rows, lambda block: function(mixed(block, mixing), **settings)), None, None
    )


def _rule(rows: Tensor, spec: Spec, given: Given) -> Outcome:
    """Run the rule as it is written, and make an outcome of what it returns."""
    compute, settings = resolve_rule(spec)
    name = split(spec)[0]
    offered = _offer(compute, settings, given, name=name)
    if is_built_in(name):
        try:
            return _outcome(rows, name, compute(rows, **settings, **offered))
        except NUMERICAL as error:  # no client's update may end a run through a rule of ours
            raise Refusal(f"{name} cannot aggregate these updates: {error}") from error
    with blamed("rule", name, but=REFUSALS):
        return _outcome(rows, name, compute(rows, **settings, **offered))


def _outcome(rows: Tensor, name: str, found: Any) -> Outcome:
    """Make an outcome of what a rule returned, once its shape and type are as they must be."""
    kind, aggregate = rule_record(name).kind, rows.shape[1:]
    if isinstance(found, Outcome):
        check_returned("rule", name, found.aggregate, aggregate, rows.dtype)
        return found
    if kind == "weights":
        counted = found.dtype if isinstance(found, Tensor) and found.is_floating_point() else None
        weights = check_returned("rule", name, found, rows.shape[:1], counted or rows.dtype)
        return Outcome(weighted(rows, weights), None, weights)
    return Outcome(check_returned("rule", name, found, aggregate, rows.dtype), None, None)


def _offer(
    function: Callable[..., Any], settings: dict[str, Any], given: Given, *, name: str = ""
) -> dict[str, Any]:
    """Compute what the function wants beside its settings, and nothing else."""
    offered = {}
    for key, parameter in parameters(function).items():
        if key in given and key not in settings:
            offered[key] = given[key]()
        elif key in MISSING and key not in settings and parameter.default is parameter.empty:
            raise ValueError(f"{name} needs {key!r} {MISSING[key]}")
    return offered
