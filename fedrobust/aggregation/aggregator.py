"""From a spec to a rule: preconditions, non-finite rows, memory across rounds, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import kernels
from fedrobust.aggregation.columns import by_blocks
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.selection import weighted
from fedrobust.aggregation.tables import (
    COORDINATE_WISE,
    MINIMUM,
    MIXINGS,
    PREAGGREGATORS,
    RULES,
    STEPS,
    WEIGHTS,
)
from fedrobust.spec import Spec, parameters, resolve, split

SUPPLIED = ("generator", "memory", "clients")
FROM_SERVER = ("root", "loss")  # of the server's own data; a spec may carry them instead


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
        ``(updates, state=None, generator=None, *, clients=None, server=None) -> Outcome``. Rules
        that remember each client's past need ``clients``, the rows' clients, where rows may be
        missing. ``server`` maps "root" and "loss" to functions that compute what ``fltrust``,
        ``zeno`` and ``rsa`` know from data of the server's own.
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
    _resolve_rule(spec)
    for one in pre:
        resolve(PREAGGREGATORS, one, kind="pre-aggregator", supplied=SUPPLIED)

    def apply(
        updates: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
        *,
        clients: Sequence[int] | None = None,
        server: Server | None = None,
    ) -> Outcome:
        numbers = torch.arange(len(updates)) if clients is None else torch.tensor(list(clients))
        given = {"memory": lambda: state, "generator": lambda: generator, **(server or {})}
        return _apply(updates, spec, tuple(pre), numbers, given)

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
    function, settings = resolve(MIXINGS, spec, kind="pre-aggregator", supplied=SUPPLIED)
    _check_one(split(spec)[0], settings, len(updates))
    given: Given = {"generator": lambda: generator}
    return _mixed(updates, function(updates, **settings, **_offer(function, settings, given)))


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
    _resolve_rule(spec)
    _check_one(*split(spec), n)


def tolerated(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> int | None:
    """Return the largest f with which the rule accepts n updates; None where it takes no f.

    Raises
    ------
    ValueError
        If n updates are too few even with f = 0.
    """
    name, settings = split(spec)
    if "f" not in parameters(RULES[name]):
        return None
    check({"name": name, **settings, "f": 0}, n=n, pre=pre)
    for f in range(1, n):
        try:
            check({"name": name, **settings, "f": f}, n=n, pre=pre)
        except ValueError:
            return f - 1
    return n - 1


def _resolve_rule(spec: Spec) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Look a rule up; what comes from the server need not be in the spec, but may."""
    from_server = tuple(key for key in FROM_SERVER if key not in split(spec)[1])
    return resolve(RULES, spec, kind="rule", supplied=SUPPLIED + from_server)


def _check_one(name: str, settings: dict[str, Any], n: int) -> None:
    f = settings.get("f", 0)
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ValueError(f"{name} needs a whole f of at least 0, got {f!r}")
    needed = MINIMUM[name](settings) if name in MINIMUM else 1
    if n < needed:
        told = f" with f={f}" if "f" in settings else ""
        raise ValueError(f"{name}{told} needs at least {needed} updates, got {n}")


def _apply(
    updates: Tensor, spec: Spec, pre: tuple[Spec, ...], clients: Tensor, given: Given
) -> Outcome:
    if updates.dim() != 2 or not updates.is_floating_point():
        found = f"{tuple(updates.shape)} {updates.dtype}"
        raise TypeError(f"updates need shape (n, d) and a real floating type, got {found}")
    if len(clients) != len(updates):
        raise ValueError(f"{len(updates)} updates need as many clients, got {len(clients)}")
    if split(spec)[0] == "mean" and not pre and len(updates):
        outcome = _rule(updates, spec, given)
        if torch.isfinite(outcome.aggregate).all():  # no row can be otherwise: one read suffices
            return outcome
    finite = _finite(updates)
    lost = int((~finite).sum())
    if lost == len(updates):
        raise ValueError(f"none of the {len(updates)} updates is finite")
    rows = updates[finite.to(updates.device)] if lost else updates
    chain = [_with_fewer(one, lost) for one in pre]
    rule = _with_fewer(spec, lost)
    check(rule, n=len(rows), pre=chain)
    outcome = _chain(rows, chain, rule, given | {"clients": lambda: clients[finite]})
    if outcome.weights is None:
        return outcome
    weights = torch.zeros(len(updates), dtype=outcome.weights.dtype)
    weights[finite] = outcome.weights.cpu()
    return Outcome(outcome.aggregate, outcome.state, weights)


def _finite(updates: Tensor) -> Tensor:
    """Tell which rows hold finite values only, without an (n, d) mask."""
    if kernels.fits(updates):
        return kernels.finite_rows(updates)
    low, high = updates.aminmax(dim=1)  # NaN propagates
    return (torch.isfinite(low) & torch.isfinite(high)).cpu()


def _with_fewer(spec: Spec, lost: int) -> Spec:
    """Count rows already set aside against f."""
    name, settings = split(spec)
    if lost and "f" in settings:
        settings["f"] = max(0, settings["f"] - lost)
    return {"name": name, **settings}


def _chain(rows: Tensor, chain: Sequence[Spec], rule: Spec, given: Given) -> Outcome:
    """Mix the rows, run the rule; weights are traced back to the rows before the mixing."""
    before: Tensor | None = None
    for i, one in enumerate(chain):
        function, settings = resolve(MIXINGS, one, kind="pre-aggregator", supplied=SUPPLIED)
        mixing = function(rows, **settings, **_offer(function, settings, given))
        if i + 1 == len(chain) and split(rule)[0] in COORDINATE_WISE:
            return _by_columns(rows, mixing, rule)
        before = mixing if before is None else mixing @ before
        rows = _mixed(rows, mixing)
        if len(mixing) != mixing.shape[1]:  # buckets are nobody's: their places are their numbers
            given = given | {"clients": partial(torch.arange, len(mixing))}
    outcome = _rule(rows, rule, given)
    if outcome.weights is None or before is None:
        return outcome
    return Outcome(outcome.aggregate, outcome.state, outcome.weights @ before)


def _mixed(rows: Tensor, mixing: Tensor) -> Tensor:
    """Return the mixed rows; a mixing that only scales them needs no product."""
    scales = mixing.diagonal()
    if len(mixing) == len(rows) and torch.equal(mixing, torch.diag(scales)):
        return rows * scales.to(rows)[:, None]
    return mixing.to(rows) @ rows


def _by_columns(rows: Tensor, mixing: Tensor, rule: Spec) -> Outcome:
    """Mix and aggregate block by block: the mixed matrix never exists as a whole."""
    function, settings = _resolve_rule(rule)
    return Outcome(
        by_blocks(rows, lambda block: function(_mixed(block, mixing), **settings)), None, None
    )


def _rule(rows: Tensor, spec: Spec, given: Given) -> Outcome:
    """Run the rule; one that is a weighted sum is run as its weights, once."""
    function, settings = _resolve_rule(spec)
    name = split(spec)[0]
    if name in STEPS:
        return STEPS[name](rows, **settings, **_offer(STEPS[name], settings, given))
    if name in WEIGHTS:
        weigh = WEIGHTS[name]
        weights = weigh(rows, **settings, **_offer(weigh, settings, given))
        return Outcome(weighted(rows, weights), None, weights)
    return Outcome(function(rows, **settings, **_offer(function, settings, given)), None, None)


def _offer(function: Callable[..., Any], settings: dict[str, Any], given: Given) -> dict[str, Any]:
    """Compute what the function wants beside its settings, and nothing else."""
    offered = {}
    for key, parameter in parameters(function).items():
        if key in given and key not in settings:
            offered[key] = given[key]()
        elif key in FROM_SERVER and key not in settings and parameter.default is parameter.empty:
            raise ValueError(
                f"{function.__name__.removesuffix('_step').removesuffix('_weights')} needs {key!r}"
                " from data of the server's own: set server.root_images, or put it in the spec"
            )
    return offered
