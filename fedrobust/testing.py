"""Conformance checks: what the system relies on in a rule, a pre-aggregator or an attack.

What our own tests run over every table, for anybody's plug-in: ``check_rule(my_rule, f=2)``. A
check returns nothing, or raises AssertionError with a sentence that says what was broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import Rule
from fedrobust.attacks import Attack, Crafted, craft
from fedrobust.conformance import (
    D,
    Given,
    N,
    aggregate_of,
    attack_of,
    check_output,
    check_types,
    copy,
    gap,
    honest_rows,
    layers_of_rows,
    near,
    outcome,
    preaggregator_of,
    require,
    rule_of,
    same,
    supplied,
)
from fedrobust.seeds import generator as seeded
from fedrobust.spec import parameters

FAR = (1e4, 1e8)  # sizes of Byzantine rows; a bounded rule answers both about equally


def check_rule(rule: Any, *, f: int = 1, **settings: Any) -> None:
    """Check a rule: shape, input, types, order, scale, translation, f = 0, far rows, memory.

    Parameters
    ----------
    rule
        A function ``(n, d) -> (d,)``, an ``aggregation.Rule``, or a name or spec of ``RULES``. Of a
        plain function nothing is known: it must bear f far rows and follow order, translation and
        scale. A record says which of these its rule promises.
    f
        Byzantine rows, of 15; given to the rule where it has a parameter f.
    settings
        Further settings that the rule cannot do without.

    Raises
    ------
    AssertionError
        With a sentence that says what the rule broke.
    """
    record, given = rule_of(rule, settings)
    if record.takes_f:
        given = {"f": f} | given
    rows = honest_rows(N, D)
    check_output(record.name, lambda x: aggregate_of(record, x, given), rows, (D,))
    check_types(record.name, lambda x: aggregate_of(record, x, given), rows)
    _check_order(record, rows, given)
    _check_invariance(record, rows, given)
    _check_without_attackers(record, rows, given)
    _check_far_rows(record, rows, given, f)
    _check_memory(record, rows, given)


def check_preaggregator(pre: Any, *, f: int = 1, **settings: Any) -> None:
    """Check a pre-aggregator: a matrix comes out, untouched input, type, rows within their hull.

    Parameters
    ----------
    pre
        A function ``(n, d) -> (m, d)``, an ``aggregation.PreAggregator``, or a name or spec of
        ``PREAGGREGATORS``.
    f, settings
        As in ``check_rule``.

    Raises
    ------
    AssertionError
        With a sentence that says what the pre-aggregator broke.
    """
    name, function, given = preaggregator_of(pre, settings)
    if "f" in parameters(function):
        given = {"f": f} | given

    def run(rows: Tensor) -> Tensor:
        return function(rows, **given, **supplied(function, rows))

    rows = honest_rows(N, D)
    check_output(name, run, rows, (None, D))
    check_types(name, run, rows)
    bound = float(rows.norm(dim=1).max()) * (1 + 1e-6)
    longest = float(run(rows).norm(dim=1).max())
    require(
        longest <= bound,
        f"{name} returned a row of length {longest:.3g} from rows of at most {bound:.3g}: a"
        " pre-aggregator averages or shortens rows",
    )


def check_attack(attack: Any, **settings: Any) -> None:
    """Check an attack: f rows, untouched input, type, finite, one update in sight, draws, state.

    Parameters
    ----------
    attack
        A function ``(honest, *, n, f) -> (f, d)``, an ``attacks.Attack``, or a name or spec of
        ``ATTACKS``.
    settings
        Settings that the attack cannot do without.

    Raises
    ------
    AssertionError
        With a sentence that says what the attack broke.
    """
    record, given = attack_of(attack, settings)
    f, honest = 3, honest_rows(N - 3, D)

    def run(view: Tensor, **more: Any) -> Tensor:
        return _crafted(record, view, given, f=f, **more).updates

    check_output(record.name, run, honest, (f, D), finite=record.finite)
    check_types(record.name, run, honest)
    check_output(record.name, run, honest[:1], (f, D), finite=record.finite)
    _check_draws(record, run, honest)
    _check_state(record, honest, given, f)


def _check_order(record: Rule, rows: Tensor, given: Given) -> None:
    if record.order_matters:
        return
    order = torch.randperm(len(rows), generator=seeded(1, "conformance"))
    straight, turned = aggregate_of(record, rows, given), aggregate_of(record, rows[order], given)
    require(
        near(straight, turned),
        f"{record.name} depends on the order of the clients"
        f" (results differ by {gap(straight, turned):.2g})",
    )


def _check_invariance(record: Rule, rows: Tensor, given: Given) -> None:
    plain = aggregate_of(record, rows, given)
    if record.follows_scale:
        # By a power of two: nothing is rounded, so that a tie stays a tie.
        scaled = aggregate_of(record, 4 * rows, given) / 4
        require(
            near(plain, scaled),
            f"{record.name} does not follow the scale: 4 x gives other than 4 times the result of"
            f" x (off by {gap(plain, scaled):.2g})",
        )
    if record.follows_shift:
        shift = torch.linspace(-3, 3, rows.shape[1], dtype=rows.dtype)
        moved = aggregate_of(record, rows + shift, given) - shift
        require(
            near(plain, moved),
            f"{record.name} does not follow a translation of all rows"
            f" (off by {gap(plain, moved):.2g})",
        )
    if record.follows_rotation(given):
        _check_rotation(record, rows, given, plain)


def _check_rotation(record: Rule, rows: Tensor, given: Given, plain: Tensor) -> None:
    """Turn the rows into more coordinates than they have: their products stay what they are."""
    width = rows.shape[1]
    drawn = torch.randn(2 * width, width, generator=seeded(2, "conformance"), dtype=torch.float64)
    turn = torch.linalg.qr(drawn).Q.T.to(rows)
    turned = aggregate_of(record, rows @ turn, given)
    require(
        near(plain, turned @ turn.T),
        f"{record.name} does not follow a rotation of all rows"
        f" (off by {gap(plain, turned @ turn.T):.2g})",
    )


def _check_without_attackers(record: Rule, rows: Tensor, given: Given) -> None:
    """With f = 0 the result of a rule that follows translations is among the rows."""
    if not record.follows_shift:
        return
    mean = rows.mean(0)
    result = aggregate_of(record, rows, given | ({"f": 0} if record.takes_f else {}))
    away, most = float((result - mean).norm()), float((rows - mean).norm(dim=1).max())
    require(
        away <= most * (1 + 1e-6),
        f"{record.name} without Byzantine rows is {away:.3g} from the mean, farther than any row"
        f" ({most:.3g})",
    )


def _check_far_rows(record: Rule, rows: Tensor, given: Given, f: int) -> None:
    """Put f rows far out, on one point, on both sides, or far and farther."""
    if not record.bounded or f == 0:
        return
    honest = float(rows.norm(dim=1).max())
    for size in FAR:
        for shape in ("one point", "both sides", "far and farther"):
            attacked = rows.clone()
            attacked[_places(f)] = _far(shape, f, rows, size)
            away = float(aggregate_of(record, attacked, given).norm())
            require(
                math.isfinite(away) and away <= 20 * honest,
                f"{record.name} is carried away by {f} of {len(rows)} rows at {size:g} ({shape}):"
                f" a result of length {away:.3g} where honest rows have at most {honest:.3g}",
            )


def _places(f: int) -> list[int]:
    """Spread the Byzantine rows: first, middle, last, ..."""
    # 7 and 15 have no common factor: no place comes twice.
    return [(i * 7) % N for i in range(f)]


def _far(shape: str, f: int, rows: Tensor, size: float) -> Tensor:
    direction = torch.ones(rows.shape[1], dtype=rows.dtype)
    steps = torch.arange(f, dtype=rows.dtype)
    factors = {
        "one point": torch.ones(f, dtype=rows.dtype),
        "both sides": 1 - 2 * (steps % 2),
        "far and farther": 100.0**-steps,
    }[shape]
    return size * factors[:, None] * direction


def _check_memory(record: Rule, rows: Tensor, given: Given) -> None:
    """Memory is a value: the same state gives the same result, and is left as it was."""
    if not record.remembers:
        return
    _, state = outcome(record, rows, given)
    kept = copy(state)
    first, _ = outcome(record, rows, given, memory=state)
    require(same(state, kept), f"{record.name} changed the memory that it was given")
    again, _ = outcome(record, rows, given, memory=state)
    require(
        torch.equal(first, again), f"{record.name} answers the same memory in two different ways"
    )


def _crafted(
    record: Attack, view: Tensor, given: Given, *, f: int, state: Any = None, seed: int = 0
) -> Crafted:
    known = {
        "n": N,
        "f": f,
        "round": 0,
        "rule": "median",
        "generator": seeded(seed, "conformance/draws"),
        "state": state,
        "craft": craft,
        "layers": layers_of_rows(view),
        "model": torch.ones_like(view[0]),
    }
    wanted = parameters(record.craft)
    sent = record.craft(view, **given, **{k: v for k, v in known.items() if k in wanted})
    return sent if isinstance(sent, Crafted) else Crafted(sent)


def _check_draws(record: Attack, run: Callable[..., Tensor], honest: Tensor) -> None:
    before = torch.get_rng_state()
    run(honest)
    require(
        torch.equal(before, torch.get_rng_state()),
        f"{record.name} draws from torch's global generator: it needs a parameter generator",
    )


def _check_state(record: Attack, honest: Tensor, given: Given, f: int) -> None:
    if "state" not in record.settings:
        return
    state = _crafted(record, honest, given, f=f).state
    kept = copy(state)
    first = _crafted(record, honest, given, f=f, state=state).updates
    require(same(state, kept), f"{record.name} changed the state that it was given")
    again = _crafted(record, honest, given, f=f, state=state).updates
    require(
        torch.equal(first, again), f"{record.name} answers the same state in two different ways"
    )
