"""From a spec to an attack: what enters it, its memory, and what it sends in a round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedrobust.attacks import alie
from fedrobust.attacks.of_model import informed, of_model
from fedrobust.attacks.probe import Rule
from fedrobust.attacks.record import KNOWLEDGE, Crafted
from fedrobust.attacks.tables import ATTACKS, attack_record
from fedrobust.failures import blamed
from fedrobust.matrix import EXACT, computable, matrix, narrowed, vector
from fedrobust.model_layers import Layers
from fedrobust.ranges import whole
from fedrobust.returned import check_returned
from fedrobust.seeds import generator as seeded
from fedrobust.spec import Spec, SpecError, parameters, resolve, split, suggest

SUPPLIED = ("n", "f", "round", "rule", "generator", "previous", "own", "momentum", "state", "craft",
            "out", "layers", "model")  # fmt: skip


def knowledge(spec: Spec) -> tuple[Spec, str | None]:
    """Take ``knowledge`` out of an attack spec: it says what the attacker sees, not what it does.

    Raises
    ------
    SpecError
        If it is none of "own", "colluding", "omniscient".
    """
    name, given = split(spec)
    # split made this dict anew: the caller's spec is not touched.
    level = given.pop("knowledge", None)
    if level is not None and level not in KNOWLEDGE:
        hint = suggest(str(level), list(KNOWLEDGE))
        raise SpecError(f"unknown knowledge {level!r} of attack {name!r}; {hint}")
    return {"name": name, **given}, level


@dataclass(frozen=True)
class Attacker:
    """An attack with its memory as a value.

    Attributes
    ----------
    init
        ``() -> state``.
    craft
        ``(honest, state, *, n, f, ...) -> Crafted``, the keywords those of ``craft``.
    """

    init: Callable[[], Any]
    craft: Callable[..., Crafted]


def build(spec: Spec) -> Attacker:
    """Build an attack from its spec; names and parameters are checked here, once.

    Raises
    ------
    SpecError
        For an unknown attack or setting.
    """
    plain, _ = knowledge(spec)
    resolve(ATTACKS, plain, kind="attack", supplied=SUPPLIED)
    return Attacker(
        lambda: None, lambda honest, state=None, **given: step(honest, spec, state=state, **given)
    )


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
    momentum: float = 0.0,
    layers: Layers | None = None,
    model: Tensor | None = None,
) -> Tensor:
    """Craft what the f attackers send this round: (h, d) -> (f, d), same dtype and device.

    Parameters
    ----------
    honest
        The updates that the attackers see: all honest ones (omniscient, h = n - f) or their own
        (h = f, or 1). A tensor, a numpy array or a list of rows; never changed. Halves are computed
        in float32.
    spec
        An attack of ``ATTACKS`` and its settings; ``knowledge`` is checked and left aside.
    n, f
        Clients in total and attackers among them, 0 <= f <= n.
    round
        Counted from 0.
    rule
        The defence, for attacks that tune themselves: a rule spec or ``(n, d) -> (d,)``.
        A spec is asked with fresh memory and its own randomness; a run hands in its rule with the
        memory that the attackers know of.
    generator
        For random attacks; None draws from one fixed by the attack's name and the round.
    previous
        The last aggregate, (d,), for ``rop`` and ``free_rider``; None in the first round.
    own
        What each attacker would have sent, (f, d), for attacks that act per attacker.
    momentum
        The honest clients' worker momentum, in [0, 1), for attacks that look through it.
    layers
        (name, shape) of each tensor of the model, in the order of the coordinates, for attacks and
        rules that ask for them; None where nobody knows.
    model
        The global model (d,) that the updates are subtracted from.

    Returns
    -------
    Tensor
        (f, d). Where all attackers send one vector the rows share its memory: read only. An attack
        with memory starts afresh here; ``step`` carries it.

    Raises
    ------
    SpecError
        For an unknown attack or setting.
    ValueError
        For updates that are no real floating-point matrix, NaN or Inf among them, wrong shapes, n
        and f out of range, or values that the attack cannot compute with.
    """
    return step(
        honest, spec, n=n, f=f, round=round, rule=rule, generator=generator,
        previous=previous, own=own, momentum=momentum, layers=layers, model=model,
    ).updates  # fmt: skip


def step(
    honest: Tensor,
    spec: Spec,
    *,
    n: int,
    f: int,
    state: Any = None,
    round: int = 0,
    rule: Rule | None = None,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
    own: Tensor | None = None,
    momentum: float = 0.0,
    out: Tensor | None = None,
    layers: Layers | None = None,
    model: Tensor | None = None,
) -> Crafted:
    """Craft as ``craft`` does, from the attack's memory; the new memory is returned.

    Parameters
    ----------
    state
        The state that the last round returned, None in the first. Never modified.
    out
        Memory of (f, d) in the honest updates' type, for attacks that send different rows: what
        they return may be there.
    """
    name = split(spec)[0]
    plain, _ = knowledge(spec)
    function, given = resolve(ATTACKS, plain, kind="attack", supplied=SUPPLIED)
    view = _view(honest, name)
    previous = None if previous is None else computable(vector(previous, f"{name}: previous"))
    own = None if own is None else computable(matrix(own, f"{name}: own"))
    check(view, name, n, f, previous, own)
    if f == 0:
        return Crafted(view.new_empty((0, view.shape[1])), state)
    known = of_model(name, function, layers, model, view.shape[1])
    wanted = parameters(function)
    supplied = {
        "n": n,
        "f": f,
        "round": round,
        "rule": informed(rule, layers, model) if "rule" in wanted else None,
        "generator": generator,
        "previous": previous,
        "own": own,
        "momentum": momentum,
        "state": state,
        "craft": craft,
        "out": out if computable(view) is view else None,
        **known,
    }
    sent = function(computable(view), **given, **{k: v for k, v in supplied.items() if k in wanted})
    crafted = sent if isinstance(sent, Crafted) else Crafted(sent)
    return replace(crafted, updates=_finished(crafted.updates, view, name, f))


def _view(honest: Any, name: str) -> Tensor:
    """Return what the attacker sees as a matrix with one row at least."""
    try:
        view = matrix(honest, "they")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} needs (h, d) floating updates, h, d >= 1: {error}") from error
    if not len(view):
        got = tuple(view.shape)
        raise ValueError(f"{name} needs (h, d) floating updates, h, d >= 1, got shape {got}")
    return view


def _finished(sent: Tensor, view: Tensor, name: str, f: int) -> Tensor:
    """Return the rows in the honest updates' type, or say what is wrong with them."""
    _checked_rows(name, sent, (f, view.shape[1]), view.dtype)
    # Where all attackers send one vector the rows are one memory, read once.
    distinct = sent[:1] if sent.stride(0) == 0 else sent
    if attack_record(name).finite and not _all_finite(distinct):
        raise ValueError(f"{name}: from these updates it crafts no finite ones; scale them")
    return narrowed(sent, view.dtype, name)


def _checked_rows(name: str, sent: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Raise PluginError unless these are the rows; float64 is narrowed by whoever sends them."""
    exact = isinstance(sent, Tensor) and sent.dtype in EXACT
    check_returned("attack", name, sent, shape, sent.dtype if exact else dtype)


def check(
    honest: Tensor, name: str, n: int, f: int, previous: Tensor | None, own: Tensor | None
) -> None:
    """Raise ValueError for input that no attack can use."""
    whole(n, name, "n")
    whole(f, name, "f")
    if f > n:
        raise ValueError(f"{name} needs 0 <= f <= n, got n={n}, f={f}")
    for what, value, shape in (
        ("previous", previous, honest.shape[1:]),
        ("own", own, (f, honest.shape[1])),
    ):
        if value is not None and tuple(value.shape) != tuple(shape):
            got = tuple(value.shape)
            raise ValueError(f"{name} needs {what} of shape {tuple(shape)}, got {got}")
    for what, value in (("honest", honest), ("previous", previous), ("own", own)):
        if value is not None and not _all_finite(value):
            raise ValueError(f"{name} needs finite {what} updates, got NaN or Inf")


def _all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: one read, no mask of its size."""
    return not values.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(values))


def rehearse(name: str, function: Callable[..., Tensor], given: dict[str, Any], **who: int) -> None:
    """Run an attack once on a small invented matrix, so that bad values raise before the run."""
    # Wide enough for the coordinate of "finite_norm".
    width = 8 + int(given.get("coordinate") or 0)
    # Rows that differ: a spread of 0 would hide what a setting does.
    honest = torch.arange(max(1, who["n"] - who["f"]), dtype=torch.float64)[:, None]
    given_by_run = dict.fromkeys(SUPPLIED, None) | {"round": 0, "generator": seeded(0, name)}
    given_by_run["momentum"] = 0.0
    supplied = {**given_by_run, **who, "rule": lambda rows: rows[0], "craft": craft}
    wanted = parameters(function)
    view = honest.expand(-1, width)
    supplied |= {"layers": (("rehearsal", (width,)),), "model": view[0] + 1}
    known = {"previous": view[0], "own": view[:1].expand(who["f"], -1), "round": 1}
    for more in ({}, known):  # some settings are read only once there is something to look back on
        offered = {k: v for k, v in (supplied | more).items() if k in wanted}
        try:
            with blamed("attack", name, but=(TypeError, ValueError)):
                sent = function(view, **given, **offered)
        except (TypeError, ValueError) as error:
            raise SpecError(f"attack {name!r}: {error}") from error
        rows = sent.updates if isinstance(sent, Crafted) else sent
        _checked_rows(name, rows, (who["f"], width), honest.dtype)


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
    # Without attackers the formula has no z to give.
    if "z" in used and (f > 0 or used["z"] is not None):
        used["z"] = alie.shift(n, f, z=used["z"], formula=used.get("formula", "neurips"))
    if "inner" in used:
        used["inner"] = settings(used["inner"], n, f)
    return used if level is None else {**used, "knowledge": level}
