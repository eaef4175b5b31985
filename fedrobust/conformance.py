"""What the conformance checks share: inputs, plug-ins of any form as records, plain comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import Outcome, PreAggregator, Rule, preaggregator_record, rule_record
from fedrobust.aggregation.record import weighted
from fedrobust.attacks import Attack, attack_record
from fedrobust.model_layers import Layers
from fedrobust.seeds import generator as seeded
from fedrobust.spec import parameters, split

# 15 is the least n of Bulyan with f = 3, the rule that needs most (4 f + 3).
N, D = 15, 24  # clients and coordinates of the inputs
Given = dict[str, Any]


def require(holds: bool, sentence: str) -> None:
    """Raise AssertionError with the sentence unless something holds."""
    if not holds:
        raise AssertionError(sentence)


def honest_rows(n: int, d: int, *, seed: int = 0) -> Tensor:
    """Return rows around a common direction, float64: nobody's mean is zero."""
    # float64: what a check finds is the rule's doing, not rounding.
    noise = torch.randn(n, d, generator=seeded(seed, "conformance"), dtype=torch.float64)
    return noise + torch.linspace(0.5, 1.5, d, dtype=torch.float64)


def rule_of(rule: Any, settings: Mapping[str, Any]) -> tuple[Rule, Given]:
    """Return the record and settings of a function, a record or a spec."""
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


def preaggregator_of(
    pre: Any, settings: Mapping[str, Any]
) -> tuple[str, Callable[..., Tensor], Given]:
    """Return the name, function and settings of a function, a record or a spec."""
    if isinstance(pre, PreAggregator):
        return pre.name, pre.function(), dict(settings)
    if isinstance(pre, str | Mapping):
        name, given = split(pre)
        return name, preaggregator_record(name).function(), given | dict(settings)
    if not callable(pre):
        raise TypeError(f"check_preaggregator needs a function, a record or a spec, got {pre!r}")
    return str(getattr(pre, "__name__", "pre-aggregator")), pre, dict(settings)


def attack_of(attack: Any, settings: Mapping[str, Any]) -> tuple[Attack, Given]:
    """Return the record and settings of a function, a record or a spec."""
    if isinstance(attack, Attack):
        return attack, dict(settings)
    if isinstance(attack, str | Mapping):
        name, given = split(attack)
        return attack_record(name), given | dict(settings)
    if not callable(attack):
        raise TypeError(f"check_attack needs a function, a record or a spec, got {attack!r}")
    name = str(getattr(attack, "__name__", "attack"))
    return Attack(name=name, craft=attack), dict(settings)


def layers_of_rows(rows: Tensor) -> Layers:
    """Return the layers of an invented model, as many values as the rows have coordinates."""
    half = rows.shape[1] // 2
    return (("weight", (half // 2, 2)), ("bias", (rows.shape[1] - 2 * (half // 2),)))


def supplied(function: Callable[..., Any], rows: Tensor, clients: Tensor | None = None) -> Given:
    """Return what the system hands in, as far as the function takes it."""
    known = {
        "generator": seeded(0, "conformance/draws"),
        "clients": clients,
        "layers": layers_of_rows(rows),
        "model": torch.ones_like(rows[0]),
    }
    return {key: value for key, value in known.items() if key in parameters(function)}


def outcome(record: Rule, rows: Tensor, given: Given, *, memory: Any = None) -> tuple[Tensor, Any]:
    """Run a rule as it is written; return its aggregate and its memory."""
    more = supplied(record.compute, rows, torch.arange(len(rows)))
    more = {key: value for key, value in more.items() if key not in given}
    if record.remembers:
        more["memory"] = memory
    if "root" in given:
        given = given | {"root": given["root"].to(rows)}
    found = record.compute(rows, **given, **more)
    if isinstance(found, Outcome):
        return found.aggregate, found.state
    if record.kind == "weights":
        return weighted(rows, found), None
    return found, None


def aggregate_of(record: Rule, rows: Tensor, given: Given) -> Tensor:
    """Run a rule with fresh memory."""
    return outcome(record, rows, given)[0]


def check_output(
    name: str,
    run: Callable[[Tensor], Tensor],
    rows: Tensor,
    shape: tuple[int | None, ...],
    *,
    finite: bool = True,
) -> None:
    """Check shape, untouched input, finite values, and the same answer twice."""
    before = rows.clone()
    result = run(rows)
    require(isinstance(result, Tensor), f"{name} returned {type(result).__name__}, no tensor")
    fits = len(result.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, result.shape, strict=True)
    )
    wanted = tuple("m" if size is None else size for size in shape)
    found = tuple(result.shape)
    require(fits, f"{name} returned shape {found} for {tuple(rows.shape)} rows, not {wanted}")
    require(torch.equal(rows, before), f"{name} changed the rows that it was given")
    require(
        result.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr(),
        f"{name} returned a view of the rows that it was given: writing to it changes them",
    )
    if finite:
        require(bool(torch.isfinite(result).all()), f"{name} returned NaN or Inf from finite rows")
    again = run(rows)
    require(
        # NaN is not equal to itself.
        torch.equal(result.nan_to_num(), again.nan_to_num()),
        f"{name} returned two results for the same rows: it draws from a global generator or keeps"
        " memory of its own",
    )


def check_types(name: str, run: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Check that type and device of the rows are those of the result."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            result = run(rows.to(device=device, dtype=dtype))
            require(
                result.dtype == dtype,
                f"{name} returned {result.dtype} for rows of {dtype}",
            )
            require(
                result.device.type == device.type,
                f"{name} returned a tensor on {result.device} for rows on {device}",
            )


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two results agree to rounding."""
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two results."""
    return float((one - other).abs().max())


def copy(state: Any) -> Any:
    """Return a copy of a state, to compare with later."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: copy(value) for key, value in state.items()}
    return state


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal in every bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)
