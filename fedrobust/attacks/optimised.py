"""ALIE and IPM with their factor tuned against the known rule, and sensitivity curves."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.attacks.moments import mean, moments, repeat
from fedrobust.attacks.probe import Rule, alone, callable_rule, line_search, prober
from fedrobust.attacks.reduction import in_span


def tuned(
    honest: Tensor,
    direction: Tensor,
    origin: Tensor,
    centre: Tensor,
    *,
    f: int,
    rule: Rule | None,
    attack: str,
    evaluations: int,
) -> tuple[float, float]:
    """Return (factor, ||rule's output - mean||) for the best origin + factor * direction."""
    if evaluations < 1:
        raise ValueError(f"{attack} needs evaluations >= 1, got {evaluations}")
    # Lengths are the same in coordinates, where the rule can be asked there.
    rule, honest, (direction, origin, centre) = in_span(rule, honest, [direction, origin, centre])
    probe = prober(rule, honest, f, attack)

    def value(factor: float) -> float:
        return float(torch.linalg.vector_norm(probe(origin + factor * direction) - centre))

    return line_search(value, evaluations=evaluations)


def opt_alie(
    honest: Tensor,
    *,
    n: int,
    f: int,
    sign: int = 0,
    ddof: int = 0,
    evaluations: int = 20,
    rule: Rule | None = None,
) -> Tensor:
    """ALIE with the z that moves the rule's output furthest from the honest mean.

    Parameters
    ----------
    sign
        -1, +1, or 0: search both sides and keep the better one (-1 on ties).
    evaluations
        Calls of the rule, per side.

    Raises
    ------
    ValueError
        If there is no rule; for any other value of a setting.

    References
    ----------
    The optimised attacks of Farhadkhani et al., ICML 2022, as ByzFL searches them (side +1):
    from 0 with step 10, see ``probe.line_search``.
    """
    if sign not in (-1, 0, 1):
        raise ValueError(f"opt_alie needs sign -1, 0 or 1, got {sign!r}")
    centre, std = moments(honest, ddof=ddof)
    found = []
    for side in (sign,) if sign else (-1, 1):
        z, moved = tuned(
            honest,
            side * std,
            centre,
            centre,
            f=f,
            rule=rule,
            attack="opt_alie",
            evaluations=evaluations,
        )
        found.append((moved, side * z))
    # By the value alone: max keeps the first of equals, side -1; pairs would go on to compare z.
    return repeat(centre + max(found, key=lambda pair: pair[0])[1] * std, f, honest)


def opt_ipm(
    honest: Tensor, *, n: int, f: int, evaluations: int = 20, rule: Rule | None = None
) -> Tensor:
    """IPM with the epsilon >= 0 that moves the rule's output furthest from the honest mean.

    Raises
    ------
    ValueError
        If there is no rule, or evaluations < 1.

    References
    ----------
    As ``opt_alie``.
    """
    centre = mean(honest)
    origin = torch.zeros_like(centre)
    epsilon, _ = tuned(
        honest,
        -centre,
        origin,
        centre,
        f=f,
        rule=rule,
        attack="opt_ipm",
        evaluations=evaluations,
    )
    return repeat(-epsilon * centre, f, honest)


def sensitivity(rule: Rule, base: Tensor, extra: Tensor) -> Tensor:
    """Tukey's sensitivity curve: N times what one more vector changes in the rule's output.

    ``base`` is (N - 1, d), ``extra`` (d,); the result (d,).
    """
    ask = callable_rule(rule, "sensitivity")
    whole = torch.cat([base, extra[None].to(base)])
    return whole.shape[0] * (ask(whole) - ask(base))


def sensitivity_curve(
    honest: Tensor,
    *,
    n: int,
    f: int,
    limit: float = 16.0,
    steps: int = 24,
    tolerance: float = 1e-3,
    rule: Rule | None = None,
) -> Tensor:
    """Send, per coordinate, the smallest deviation that bends the rule most. Interpretation.

    All coordinates leave the honest mean at once, against its sign, by t standard deviations. A
    scan over t finds how far the rule's output can be moved in each coordinate, a bisection the
    smallest t that moves it that far: exact where the rule acts on each coordinate by itself.

    Parameters
    ----------
    limit
        Largest t.
    steps
        Calls of the rule in the scan (even steps over (0, limit]) and again in the bisection.
    tolerance
        Of the maximum: a coordinate is content with (1 - tolerance) of it.

    Raises
    ------
    ValueError
        If there is no rule; for limit <= 0, steps < 1 or tolerance outside (0, 1).

    References
    ----------
    After Schroth, Vlaski, Zoubir, arXiv 2304.14024 and 2412.17740, whose text was not available:
    the definition of the curve is Tukey's, the search is this project's.
    """
    if not (limit > 0 and steps >= 1 and 0 < tolerance < 1):
        raise ValueError(
            "sensitivity_curve needs limit > 0, steps >= 1 and 0 < tolerance < 1, "
            f"got {limit}, {steps}, {tolerance}"
        )
    centre, std = moments(honest)
    # Not sign(): a coordinate with mean 0 would never be attacked.
    against = -torch.where(centre < 0, -1.0, 1.0).to(centre)
    probe = prober(rule, honest, f, "sensitivity_curve")
    base = alone(rule, honest, "sensitivity_curve")

    def moved(t: Tensor) -> Tensor:
        change = (probe(centre + against * t * std) - base) * against
        return change.nan_to_num(nan=-torch.inf)

    low = torch.zeros_like(centre)
    high, best = low.clone(), moved(low)
    for k in range(1, steps + 1):
        t = torch.full_like(centre, limit * k / steps)
        change = moved(t)
        # By more than the tolerance: on a plateau the smallest t stays. Where the rule's answer was
        # NaN so far, best is -inf, and -inf + inf would be a NaN that nothing is greater than.
        margin = torch.where(torch.isfinite(best), tolerance * best.abs(), 0.0)
        better = change > best + margin
        high = torch.where(better, t, high)
        best = torch.where(better, change, best)
    # The scan's step before the best one was not enough: the answer is between the two.
    low = (high - limit / steps).clamp(min=0)
    goal = best - tolerance * best.abs()
    for _ in range(steps):
        middle = (low + high) / 2
        enough = moved(middle) >= goal
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return repeat(centre + against * high * std, f, honest)
