"""The table of attacks, and the one call that crafts the malicious updates of a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.attacks import (
    alie,
    coupled,
    fang,
    finite_norm,
    min_max,
    optimised,
    seesaw,
    simple,
)
from fedrobust.attacks.probe import Rule
from fedrobust.spec import Spec, SpecError, parameters, resolve, split, suggest

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "alie": alie.alie,
    "seesaw": seesaw.seesaw,
    "finite_norm": finite_norm.finite_norm,
    "ipm": simple.ipm,
    "sign_flip": simple.sign_flip,
    "reversed_gradient": simple.reversed_gradient,
    "constant": simple.constant,
    "zero": simple.zero,
    "gaussian": simple.gaussian,
    "mimic": coupled.mimic,
    "min_max": min_max.min_max,
    "min_sum": min_max.min_sum,
    "fang": fang.fang,
    "rop": coupled.rop,
    "byzmean": coupled.byzmean,
    "sensitivity_curve": optimised.sensitivity_curve,
    "opt_alie": optimised.opt_alie,
    "opt_ipm": optimised.opt_ipm,
    "model_replacement": simple.model_replacement,
    "free_rider": simple.free_rider,
    "nan": simple.nan,
    "inf": simple.inf,
}
SUPPLIED = ("n", "f", "round", "rule", "generator", "previous", "own", "craft")
KNOWLEDGE = ("own", "colluding", "omniscient")


def knowledge(spec: Spec) -> tuple[Spec, str | None]:
    """Take ``knowledge`` out of an attack spec: it says what the attacker sees, not what it does.

    Raises
    ------
    SpecError
        If it is none of "own", "colluding", "omniscient".
    """
    name, given = split(spec)
    level = given.pop("knowledge", None)
    if level is not None and level not in KNOWLEDGE:
        hint = suggest(str(level), list(KNOWLEDGE))
        raise SpecError(f"unknown knowledge {level!r} of attack {name!r}; {hint}")
    return {"name": name, **given}, level


def craft(
    honest: Tensor,
    spec: Spec,
    *,
    n: int,
    f: int,
    round: int = 0,
    rule: Rule | None = None,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Craft what the f attackers send this round: (h, d) -> (f, d), same dtype and device.

    Parameters
    ----------
    honest
        The updates that the attackers see: all honest ones (omniscient, h = n - f) or their own
        (h = f, or 1). Never changed.
    spec
        An attack of ``ATTACKS`` and its settings; ``knowledge`` is checked and left aside.
    n, f
        Clients in total and attackers among them, 0 <= f <= n.
    round
        Counted from 0.
    rule
        The defence, for attacks that tune themselves: a rule spec or ``(n, d) -> (d,)``.
        It is asked with fresh memory and its own randomness, so the run's rule is not disturbed.
    generator
        For random attacks; None draws from one fixed by the attack's name and the round.
    previous
        The last aggregate, (d,), for ``rop`` and ``free_rider``; None in the first round.
    own
        What each attacker would have sent, (f, d), for attacks that act per attacker.

    Returns
    -------
    Tensor
        (f, d). Where all attackers send one vector the rows share its memory: read only.

    Raises
    ------
    SpecError
        For an unknown attack or setting.
    ValueError
        For NaN or Inf in what the attacker sees, wrong shapes, or n and f out of range.
    """
    plain, _ = knowledge(spec)
    function, given = resolve(ATTACKS, plain, kind="attack", supplied=SUPPLIED)
    check(honest, split(spec)[0], n, f, previous, own)
    if f == 0:
        return honest.new_empty((0, honest.shape[1]))
    supplied = {
        "n": n,
        "f": f,
        "round": round,
        "rule": rule,
        "generator": generator,
        "previous": previous,
        "own": own,
        "craft": craft,
    }
    wanted = parameters(function)
    return function(honest, **given, **{k: v for k, v in supplied.items() if k in wanted})


def check(
    honest: Tensor, name: str, n: int, f: int, previous: Tensor | None, own: Tensor | None
) -> None:
    """Raise ValueError for input that no attack can use."""
    if honest.dim() != 2 or 0 in honest.shape or not honest.is_floating_point():
        shape, dtype = tuple(honest.shape), honest.dtype
        raise ValueError(f"{name} needs (h, d) floating updates, h, d >= 1, got {shape} {dtype}")
    if not 0 <= f <= n:
        raise ValueError(f"{name} needs 0 <= f <= n, got n={n}, f={f}")
    for what, value, shape in (
        ("previous", previous, honest.shape[1:]),
        ("own", own, (f, honest.shape[1])),
    ):
        if value is not None and tuple(value.shape) != tuple(shape):
            got = tuple(value.shape)
            raise ValueError(f"{name} needs {what} of shape {tuple(shape)}, got {got}")
    for what, value in (("honest", honest), ("previous", previous), ("own", own)):
        if value is not None and value.numel():
            low, high = torch.aminmax(value.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ValueError(f"{name} needs finite {what} updates, got NaN or Inf")


def rehearse(name: str, function: Callable[..., Tensor], given: dict[str, Any], **who: int) -> None:
    """Run an attack once on a small invented matrix, so that bad values raise before the run."""
    width = 8 + int(given.get("coordinate") or 0)
    honest = torch.arange(max(1, who["n"] - who["f"]), dtype=torch.float64)[:, None]
    supplied = {**who, "rule": lambda rows: rows[0], "craft": craft}
    wanted = parameters(function)
    try:
        function(
            honest.expand(-1, width),
            **given,
            **{k: v for k, v in supplied.items() if k in wanted},
        )
    except (TypeError, ValueError) as error:
        raise SpecError(f"attack {name!r}: {error}") from error


def settings(spec: Spec, n: int, f: int) -> dict[str, Any]:
    """Return every setting of an attack as it will be used, defaults and ALIE's z included.

    Raises
    ------
    SpecError
        For an unknown attack or setting, or a value that the attack refuses.
    """
    plain, level = knowledge(spec)
    function, given = resolve(ATTACKS, plain, kind="attack", supplied=SUPPLIED)
    used: dict[str, Any] = {"name": split(spec)[0]}
    for key, parameter in parameters(function).items():
        if key not in SUPPLIED:
            used[key] = given.get(key, parameter.default)
    if f > 0:
        rehearse(used["name"], function, given, n=n, f=f)
    if "z" in used and (f > 0 or used["z"] is not None):
        used["z"] = alie.shift(n, f, z=used["z"], formula=used.get("formula", "neurips"))
    if "inner" in used:
        used["inner"] = settings(used["inner"], n, f)
    return used if level is None else {**used, "knowledge": level}
