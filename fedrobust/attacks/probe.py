"""How an attacker asks a known rule what it would answer, and searches over those answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.seeds import generator as seeded
from fedrobust.spec import Spec

Rule = Spec | Callable[[Tensor], Tensor]


def callable_rule(rule: Rule | None, attack: str) -> Callable[[Tensor], Tensor]:
    """Turn a rule spec into ``(n, d) -> (d,)``, with fresh memory and randomness on each call.

    Raises
    ------
    ValueError
        If there is no rule: an attack that tunes itself needs one to tune itself against.
    """
    if rule is None:
        raise ValueError(f"{attack} tunes itself against a rule: pass rule=..., got None")
    if callable(rule):
        return rule

    def ask(updates: Tensor) -> Tensor:
        from fedrobust.aggregation import aggregate

        # The same draws at every call: a search would take a rule's own luck for a gain.
        return aggregate(updates, rule, generator=seeded(0, "probe"))

    return ask


def prober(rule: Rule | None, honest: Tensor, f: int, attack: str) -> Callable[[Tensor], Tensor]:
    """Return ``vector -> the rule's output`` when all f attackers send that vector.

    One (h + f, d) matrix serves all calls. It is the rule's own ``room``, where it has one that
    begins with ``honest``; else ``honest`` itself is never handed to the rule.
    """
    ask = callable_rule(rule, attack)
    rows = honest.shape[0]
    stack = joined(getattr(rule, "room", None), honest, honest.new_zeros(1, 1), f)

    def probe(vector: Tensor) -> Tensor:
        stack[rows:] = vector.to(stack)
        # A copy: rules that select a row may answer with a view of the stack.
        return ask(stack).to(torch.float64, copy=True)

    return probe


def joined(room: Tensor | None, honest: Tensor, sent: Tensor, f: int = 0) -> Tensor:
    """Return what the server would see, (h + f, d): the honest rows and what the attackers send.

    Parameters
    ----------
    room
        A matrix whose first h rows may be ``honest`` themselves: then it is filled up and returned.
    sent
        What f rows can be filled from: (f, d), or less that spreads to it.
    f
        How many attackers; 0 takes the rows of ``sent``.
    """
    h, d = honest.shape
    shape = (h + (f or len(sent)), d)
    if room is None or room.data_ptr() != honest.data_ptr() or tuple(room.shape) != shape:
        return torch.cat([honest, sent.expand(shape[0] - h, d)])
    if room[h:].data_ptr() != sent.data_ptr() or sent.stride() != room.stride():
        room[h:] = sent
    return room


def alone(rule: Rule | None, honest: Tensor, attack: str) -> Tensor:
    """Return the rule's output, float64, for the honest rows alone."""
    trusted = getattr(rule, "room", None) is not None
    return callable_rule(rule, attack)(honest if trusted else honest.clone()).double()


def line_search(
    value: Callable[[float], float],
    *,
    evaluations: int = 20,
    start: float = 0.0,
    step: float = 10.0,
    shrink: float = 0.8,
) -> tuple[float, float]:
    """Maximise a function of one number: expand while it improves, then contract.

    Every trial is at the best point plus the step. While trials are strictly better the step
    doubles; from the first failure on it shrinks after each trial. One-sided: never below
    ``start``. Returns the best point and its value; NaN counts as minus infinity.
    """

    def score(point: float) -> float:
        found = value(point)
        return -math.inf if math.isnan(found) else found

    best, best_value = start, score(start)
    expanding = True
    for _ in range(evaluations - 1):
        trial = score(best + step)
        better = trial > best_value
        if better:
            best, best_value = best + step, trial
        expanding = expanding and better
        step *= 2.0 if expanding else shrink
    return best, best_value


def largest_accepted(
    accepted: Callable[[float], bool], *, scale: float, limit: float, tolerance: float
) -> float:
    """Return the largest accepted size found: a scan by doubling, then bisection.

    The accepted sizes need not be one interval, so the scan goes over the whole range
    ``scale * limit / 2**14 .. scale * limit`` and only its last accepted step is refined, until
    the rejected size is within ``tolerance`` (relative). Returns 0.0 when nothing is accepted.
    """
    # 15 sizes by doubling, all of them asked.
    sizes = [scale * limit * 2.0**-k for k in range(14, -1, -1)]
    passed = [k for k, size in enumerate(sizes) if accepted(size)]
    if not passed:
        return 0.0
    low = sizes[passed[-1]]
    if passed[-1] == len(sizes) - 1:
        return low
    high = sizes[passed[-1] + 1]
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return low


def draws(
    generator: torch.Generator | None, like: Tensor, attack: str, round: int
) -> torch.Generator:
    """Return the generator to draw from: the given one, else one fixed by attack and round."""
    if generator is not None:
        return generator
    return seeded(0, f"attack/{attack}", round=round, device=like.device)


def normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator, out: Tensor | None = None
) -> Tensor:
    """Draw N(0, 1) on the generator's device, in ``like``'s dtype and on its device.

    ``out``, where given, is memory of that shape, dtype and device to draw into.
    """
    if out is not None and out.device == generator.device:
        return torch.randn(shape, generator=generator, out=out)
    # Halves get rounded float32 draws: the same numbers in every type.
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(like)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw U[0, 1) on the generator's device, in float64 on ``like``'s device."""
    source = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return source.to(like.device)
