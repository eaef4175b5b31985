"""Conformance checks: what the system relies on in a rule, a pre-aggregator or an attack.

What our own tests run over every table, for anybody's plug-in: ``check_rule(my_rule, f=2)``. A
check returns nothing, or raises AssertionError with a sentence that says what was broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedrobust import aggregation
from fedrobust.aggregation import PreAggregator, Rule, preaggregator_record, rule_record
from fedrobust.attacks import Attack, Crafted, attack_record
from fedrobust.seeds import generator as seeded
from fedrobust.spec import parameters, split

N, D = 15, 24  # clients and coordinates of the inputs
FAR = (1e4, 1e8)  # sizes of Byzantine rows; a bounded rule answers both about equally
Given = dict[str, Any]


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
    record, given = _rule_of(rule, settings)
    if record.takes_f:
        given = {"f": f} | given
    rows = _rows(N, D)
    _check_output(record.name, lambda x: _run(record, x, given), rows, (D,))
    _check_types(record.name, lambda x: _run(record, x, given), rows)
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
    name, function, given = _preaggregator_of(pre, settings)
    if "f" in parameters(function):
        given = {"f": f} | given

    def run(rows: Tensor) -> Tensor:
        return function(rows, **given, **_supplied(function))

    rows = _rows(N, D)
    _check_output(name, run, rows, (None, D))
    _check_types(name, run, rows)
    bound = float(rows.norm(dim=1).max()) * (1 + 1e-6)
    longest = float(run(rows).norm(dim=1).max())
    _assert(
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
    record, given = _attack_of(attack, settings)
    f, honest = 3, _rows(N - 3, D)

    def run(view: Tensor, **more: Any) -> Tensor:
        return _crafted(record, view, given, f=f, **more).updates

    _check_output(record.name, run, honest, (f, D), finite=record.finite)
    _check_types(record.name, run, honest)
    _check_output(record.name, run, honest[:1], (f, D), finite=record.finite)
    _check_draws(record, run, honest)
    _check_state(record, honest, given, f)


def _assert(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _rows(n: int, d: int, *, seed: int = 0) -> Tensor:
    """Return rows around a common direction, float64: nobody's mean is zero."""
    noise = torch.randn(n, d, generator=seeded(seed, "conformance"), dtype=torch.float64)
    return noise + torch.linspace(0.5, 1.5, d, dtype=torch.float64)


def _rule_of(rule: Any, settings: Mapping[str, Any]) -> tuple[Rule, Given]:
    if isinstance(rule, Rule):
        return rule, dict(settings)
    if isinstance(rule, str | Mapping):
        name, given = split(rule)
        return rule_record(name), given | dict(settings)
    if not callable(rule):
        raise TypeError(f"check_rule needs a function, a record or a spec, got {rule!r}")
    name = str(getattr(rule, "__name__", "rule"))
    return Rule(
        name=name, compute=rule, follows_scale=True, follows_shift=True, bounded=True
    ), dict(settings)


def _preaggregator_of(
    pre: Any, settings: Mapping[str, Any]
) -> tuple[str, Callable[..., Tensor], Given]:
    if isinstance(pre, PreAggregator):
        return pre.name, pre.function(), dict(settings)
    if isinstance(pre, str | Mapping):
        name, given = split(pre)
        return name, preaggregator_record(name).function(), given | dict(settings)
    if not callable(pre):
        raise TypeError(f"check_preaggregator needs a function, a record or a spec, got {pre!r}")
    return str(getattr(pre, "__name__", "pre-aggregator")), pre, dict(settings)


def _attack_of(attack: Any, settings: Mapping[str, Any]) -> tuple[Attack, Given]:
    if isinstance(attack, Attack):
        return attack, dict(settings)
    if isinstance(attack, str | Mapping):
        name, given = split(attack)
        return attack_record(name), given | dict(settings)
    if not callable(attack):
        raise TypeError(f"check_attack needs a function, a record or a spec, got {attack!r}")
    name = str(getattr(attack, "__name__", "attack"))
    return Attack(name=name, craft=attack), dict(settings)


def _supplied(function: Callable[..., Any], clients: Tensor | None = None) -> Given:
    known = {"generator": seeded(0, "conformance/draws"), "clients": clients}
    return {key: value for key, value in known.items() if key in parameters(function)}


def _outcome(record: Rule, rows: Tensor, given: Given, *, memory: Any = None) -> tuple[Tensor, Any]:
    """Run a rule as it is written; return its aggregate and its memory."""
    more = _supplied(record.compute, torch.arange(len(rows)))
    if record.remembers:
        more["memory"] = memory
    if "root" in given:
        given = given | {"root": given["root"].to(rows)}
    found = record.compute(rows, **given, **more)
    if isinstance(found, aggregation.Outcome):
        return found.aggregate, found.state
    if record.kind == "weights":
        return aggregation.record.weighted(rows, found), None
    return found, None


def _run(record: Rule, rows: Tensor, given: Given) -> Tensor:
    return _outcome(record, rows, given)[0]


def _check_output(
    name: str,
    run: Callable[[Tensor], Tensor],
    rows: Tensor,
    shape: tuple[int | None, ...],
    *,
    finite: bool = True,
) -> None:
    before = rows.clone()
    result = run(rows)
    _assert(isinstance(result, Tensor), f"{name} returned {type(result).__name__}, no tensor")
    fits = len(result.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, result.shape, strict=True)
    )
    wanted = tuple("m" if size is None else size for size in shape)
    found = tuple(result.shape)
    _assert(fits, f"{name} returned shape {found} for {tuple(rows.shape)} rows, not {wanted}")
    _assert(torch.equal(rows, before), f"{name} changed the rows that it was given")
    _assert(
        result.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr(),
        f"{name} returned a view of the rows that it was given: writing to it changes them",
    )
    if finite:
        _assert(bool(torch.isfinite(result).all()), f"{name} returned NaN or Inf from finite rows")
    again = run(rows)
    _assert(
        torch.equal(result.nan_to_num(), again.nan_to_num()),
        f"{name} returned two results for the same rows: it draws from a global generator or keeps"
        " memory of its own",
    )


def _check_types(name: str, run: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            result = run(rows.to(device=device, dtype=dtype))
            _assert(
                result.dtype == dtype,
                f"{name} returned {result.dtype} for rows of {dtype}",
            )
            _assert(
                result.device.type == device.type,
                f"{name} returned a tensor on {result.device} for rows on {device}",
            )


def _check_order(record: Rule, rows: Tensor, given: Given) -> None:
    if record.order_matters:
        return
    order = torch.randperm(len(rows), generator=seeded(1, "conformance"))
    straight, turned = _run(record, rows, given), _run(record, rows[order], given)
    _assert(
        _near(straight, turned),
        f"{record.name} depends on the order of the clients"
        f" (results differ by {_gap(straight, turned):.2g})",
    )


def _check_invariance(record: Rule, rows: Tensor, given: Given) -> None:
    plain = _run(record, rows, given)
    if record.follows_scale:
        scaled = _run(record, 4 * rows, given) / 4
        _assert(
            _near(plain, scaled),
            f"{record.name} does not follow the scale: 4 x gives other than 4 times the result of"
            f" x (off by {_gap(plain, scaled):.2g})",
        )
    if record.follows_shift:
        shift = torch.linspace(-3, 3, rows.shape[1], dtype=rows.dtype)
        moved = _run(record, rows + shift, given) - shift
        _assert(
            _near(plain, moved),
            f"{record.name} does not follow a translation of all rows"
            f" (off by {_gap(plain, moved):.2g})",
        )


def _check_without_attackers(record: Rule, rows: Tensor, given: Given) -> None:
    """With f = 0 the result of a rule that follows translations is among the rows."""
    if not record.follows_shift:
        return
    mean = rows.mean(0)
    result = _run(record, rows, given | ({"f": 0} if record.takes_f else {}))
    away, most = float((result - mean).norm()), float((rows - mean).norm(dim=1).max())
    _assert(
        away <= most * (1 + 1e-6),
        f"{record.name} without Byzantine rows is {away:.3g} from the mean, farther than any row"
        f" ({most:.3g})",
    )


def _check_far_rows(record: Rule, rows: Tensor, given: Given, f: int) -> None:
    """Let f rows lie far out, on one point, on both sides, or far and farther."""
    if not record.bounded or f == 0:
        return
    honest = float(rows.norm(dim=1).max())
    for size in FAR:
        for shape in ("one point", "both sides", "far and farther"):
            attacked = rows.clone()
            attacked[_places(f)] = _far(shape, f, rows, size)
            away = float(_run(record, attacked, given).norm())
            _assert(
                math.isfinite(away) and away <= 20 * honest,
                f"{record.name} is carried away by {f} of {len(rows)} rows at {size:g} ({shape}):"
                f" a result of length {away:.3g} where honest rows have at most {honest:.3g}",
            )


def _places(f: int) -> list[int]:
    """Spread the Byzantine rows: first, middle, last, ..."""
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
    _, state = _outcome(record, rows, given)
    kept = _copy(state)
    first, _ = _outcome(record, rows, given, memory=state)
    _assert(_same(state, kept), f"{record.name} changed the memory that it was given")
    again, _ = _outcome(record, rows, given, memory=state)
    _assert(
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
    }
    wanted = parameters(record.craft)
    sent = record.craft(view, **given, **{k: v for k, v in known.items() if k in wanted})
    return sent if isinstance(sent, Crafted) else Crafted(sent)


def _check_draws(record: Attack, run: Callable[..., Tensor], honest: Tensor) -> None:
    before = torch.get_rng_state()
    run(honest)
    _assert(
        torch.equal(before, torch.get_rng_state()),
        f"{record.name} draws from torch's global generator: it needs a parameter generator",
    )


def _check_state(record: Attack, honest: Tensor, given: Given, f: int) -> None:
    if "state" not in record.settings:
        return
    state = _crafted(record, honest, given, f=f).state
    kept = _copy(state)
    first = _crafted(record, honest, given, f=f, state=state).updates
    _assert(_same(state, kept), f"{record.name} changed the state that it was given")
    again = _crafted(record, honest, given, f=f, state=state).updates
    _assert(
        torch.equal(first, again), f"{record.name} answers the same state in two different ways"
    )


def _near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _copy(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: _copy(value) for key, value in state.items()}
    return state


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return bool(one == other)
