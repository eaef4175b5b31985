"""Attacks that couple rounds or attackers: mimic, ROP, ByzMean."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.attacks.alie import shift
from fedrobust.attacks.moments import blocks, centred_gram, empty_rows, mean, reject, repeat, unit
from fedrobust.attacks.probe import Rule
from fedrobust.spec import Spec


def oja_step(honest: Tensor, centre: Tensor, z: Tensor, *, round: int) -> tuple[Tensor, Tensor]:
    """One step of the warm-up of ``mimic``: new running mean and direction of most variance.

    Parameters
    ----------
    centre, z
        (d,) each, of the step before; z of norm 1. In round 0 the old mean has no weight.

    References
    ----------
    Karimireddy, He, Jaggi, ICLR 2022, appendix: mu = t / (1 + t) mu + mean / (1 + t), and z
    proportional to t / (1 + t) z + c / ||c|| / (1 + t), c = sum_i <x_i - mu, z> (x_i - mu).
    """
    old, new = round / (1 + round), 1 / (1 + round)
    centre = old * centre.double() + new * mean(honest)
    z = z.double()
    # Two passes over the columns: every score needs all of them before c can be summed.
    scores = honest.new_zeros(honest.shape[0], dtype=torch.float64)
    for columns, block in blocks(honest):
        scores += (block - centre[columns]) @ z[columns]
    c = torch.zeros_like(centre)
    for columns, block in blocks(honest):
        c[columns] = scores @ (block - centre[columns])
    return centre, unit(old * z + new * unit(c))


def mimic(
    honest: Tensor,
    *,
    n: int,
    f: int,
    target: int | None = None,
    iterations: int = 10,
) -> Tensor:
    """Copy one honest client: nothing to detect, but its data count f times more.

    Parameters
    ----------
    target
        Which row of ``honest`` to copy, every round. None copies the row with the largest
        product with this round's direction of most variance.
    iterations
        Power iterations for that direction, from the row furthest from the mean.

    Raises
    ------
    ValueError
        If target is not a row of ``honest``, or iterations < 1.

    References
    ----------
    Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
    ICLR 2022. There the direction is learnt over warm-up rounds (``oja_step``) and the target
    then frozen: take a fixed ``target`` for that; None is the memoryless variant.
    """
    if target is not None:
        if not 0 <= target < honest.shape[0]:
            raise ValueError(f"mimic needs a target below {honest.shape[0]}, got {target}")
        return repeat(honest[target], f, honest)
    if iterations < 1:
        raise ValueError(f"mimic needs iterations >= 1, got {iterations}")
    # The direction is a sum of centred rows, so its products with them are all that is needed.
    gram = centred_gram(honest)
    # The row furthest out can hardly be orthogonal to the direction: a start without a draw.
    scores = gram[gram.diagonal().argmax()]
    for _ in range(iterations):
        scores = unit(gram @ scores)
    return repeat(honest[scores.argmax()], f, honest)


def rop(
    honest: Tensor,
    *,
    n: int,
    f: int,
    z: float | None = None,
    memory: float = 0.9,
    pi: float = 1.0,
    angle: float = 90.0,
    previous: Tensor | None = None,
) -> Tensor:
    """Step aside from the last aggregate, at an angle to where training is heading.

    With u = memory * previous + (1 - memory) * mean (the mean itself in the first round), sent is
    pi * previous + (1 - pi) * mean + z * p; p of norm 1 is at ``angle`` degrees to u, in the
    plane of u and the all-ones vector.

    Parameters
    ----------
    z
        Length of the step; None takes ALIE's ``z_max(n, f)``, clamped to 0.
    memory, pi
        In [0, 1]; pi = 1 relocates the attack to the last aggregate, 0 to the honest mean.
    angle
        90 orthogonal, 180 backwards, 270 orthogonal to the other side.

    Raises
    ------
    ValueError
        For memory or pi outside [0, 1], or no z and f > n / 2.

    References
    ----------
    Ozfatura, Ozfatura, Kupcu, Gunduz, Byzantines Can Also Learn From History, 2022 (arXiv
    2208.09894): relocated orthogonal perturbation, aimed at centered clipping.
    """
    if not (0 <= memory <= 1 and 0 <= pi <= 1 and math.isfinite(angle)):
        raise ValueError(f"rop needs memory and pi in [0, 1], got {memory}, {pi} at {angle}")
    length = shift(n, f, z=z)
    centre = mean(honest)
    last = torch.zeros_like(centre) if previous is None else previous.to(centre)
    heading = unit(centre if previous is None else memory * last + (1 - memory) * centre)
    ones = torch.ones_like(centre)
    # Zero where the heading is the all-ones direction itself: then only the angle's cosine acts.
    aside = unit(reject(ones, heading))
    radians = math.radians(angle)
    p = math.sin(radians) * aside + math.cos(radians) * heading
    return repeat(pi * last + (1 - pi) * centre + length * p, f, honest)


def byzmean(
    honest: Tensor,
    *,
    n: int,
    f: int,
    craft: Callable[..., Tensor],
    inner: Spec = "alie",
    round: int = 0,
    rule: Rule | None = None,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Make the plain mean of all n updates equal one attack vector g exactly.

    The first floor(f / 2) attackers send g, the others what is then missing.

    Parameters
    ----------
    craft
        ``fedrobust.attacks.craft``, handed in: the table of attacks imports this file.
    inner
        The attack that crafts g (its first row).

    Raises
    ------
    ValueError
        As the inner attack does.

    References
    ----------
    Xu et al., SignGuard, ICDCS 2022. Their program sums over all clients and misses g; here
    the rest is ((n - m) g - (n - f) mean) / (f - m), m = floor(f / 2), exact if all honest
    updates are known.
    """
    goal = craft(
        honest, inner, n=n, f=f, round=round, rule=rule, generator=generator, previous=previous
    )[0].double()
    # 0 for a single attacker, who then sends all that is missing.
    first = f // 2
    rest = ((n - first) * goal - (n - f) * mean(honest)) / (f - first)
    rows = empty_rows(honest, f, out)
    rows[:first], rows[first:] = goal, rest
    return rows
