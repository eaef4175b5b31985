"""Attacks that need no search: scaled means, constants, noise, crashes, free riders."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.attacks.moments import mean, repeat
from fedrobust.attacks.probe import draws, normal


def finite(value: float, attack: str, setting: str, *, low: float = -math.inf) -> float:
    """Return the value if it is a finite number of at least ``low``."""
    if not math.isfinite(value) or value < low:
        bound = "" if low == -math.inf else f" >= {low:g}"
        raise ValueError(f"{attack} needs a finite {setting}{bound}, got {value}")
    return float(value)


def own_or_mean(honest: Tensor, own: Tensor | None, f: int) -> Tensor:
    """Return the attackers' own honest updates if known, else f times the honest mean."""
    return repeat(mean(honest), f, honest) if own is None else own.to(honest)


def ipm(honest: Tensor, *, n: int, f: int, epsilon: float = 0.1) -> Tensor:
    """Send -epsilon times the honest mean.

    The plain mean still descends while epsilon < n / f - 1; a small epsilon (0.1, 0.5) beats
    Krum and the median, a large one (2 .. 100) the mean.

    References
    ----------
    Xie, Koyejo, Gupta, Fall of Empires, UAI 2019. EPFL's "empire factor" c is epsilon = c - 1.
    """
    return repeat(-finite(epsilon, "ipm", "epsilon") * mean(honest), f, honest)


def sign_flip(
    honest: Tensor, *, n: int, f: int, scale: float = 1.0, own: Tensor | None = None
) -> Tensor:
    """Each attacker sends minus its own honest update; minus the honest mean if unknown.

    Parameters
    ----------
    scale
        The flipped update is also multiplied by this; 1 is the plain flip. The plain mean of n
        still points down while scale < n / f - 1.

    References
    ----------
    Per attacker as in Karimireddy, He, Jaggi, ICLR 2022; minus the mean as in ByzFL.
    """
    return -finite(scale, "sign_flip", "scale") * own_or_mean(honest, own, f)


def reversed_gradient(honest: Tensor, *, n: int, f: int, scale: float = 10.0) -> Tensor:
    """Send -scale times the honest mean.

    References
    ----------
    Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 5 ("omniscient").
    """
    return repeat(-finite(scale, "reversed_gradient", "scale") * mean(honest), f, honest)


def constant(honest: Tensor, *, n: int, f: int, value: float = 1.0) -> Tensor:
    """Send one number in every coordinate."""
    return honest.new_full((1, honest.shape[1]), finite(value, "constant", "value")).expand(f, -1)


def zero(honest: Tensor, *, n: int, f: int) -> Tensor:
    """Send the zero vector."""
    return constant(honest, n=n, f=f, value=0.0)


def nan(honest: Tensor, *, n: int, f: int) -> Tensor:
    """Send NaN in every coordinate: a crash fault."""
    return honest.new_full((1, honest.shape[1]), math.nan).expand(f, -1)


def inf(honest: Tensor, *, n: int, f: int, sign: int = 1) -> Tensor:
    """Send plus (or, with sign=-1, minus) infinity in every coordinate: a crash fault."""
    if sign not in (-1, 1):
        raise ValueError(f"inf needs sign=-1 or sign=1, got {sign!r}")
    return honest.new_full((1, honest.shape[1]), sign * math.inf).expand(f, -1)


def gaussian(
    honest: Tensor,
    *,
    n: int,
    f: int,
    std: float = 200.0,
    around: str = "zero",
    round: int = 0,
    generator: torch.Generator | None = None,
    own: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Send N(0, std^2) noise, drawn anew for each attacker.

    Parameters
    ----------
    around
        "zero", or "honest": the noise is added to the attacker's own update (or the mean).

    References
    ----------
    Blanchard et al., NeurIPS 2017, section 5: std 200. ByzFL uses 1, SignGuard 0.5.
    """
    if around not in ("zero", "honest"):
        raise ValueError(f"gaussian needs around='zero' or 'honest', got {around!r}")
    source = draws(generator, honest, "gaussian", round)
    noise = normal((f, honest.shape[1]), honest, source, out)
    # In place: the noise is as large as all attackers' updates together.
    noise *= finite(std, "gaussian", "std", low=0)
    return noise if around == "zero" else noise.add_(own_or_mean(honest, own, f))


def free_rider(
    honest: Tensor,
    *,
    n: int,
    f: int,
    std: float = 0.0,
    round: int = 0,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Send last round's aggregate (zero in the first round), with N(0, std^2) noise on it.

    References
    ----------
    Lin, Du, Liu, Free-riders in Federated Learning, 2019: delta weights attack; with std > 0
    the advanced variant, whose noise differs between attackers.
    """
    last = torch.zeros_like(honest[0]) if previous is None else previous
    if finite(std, "free_rider", "std", low=0) == 0:
        return repeat(last, f, honest)
    source = draws(generator, honest, "free_rider", round)
    return normal((f, honest.shape[1]), honest, source, out).mul_(std).add_(last.to(honest))


def model_replacement(
    honest: Tensor,
    *,
    n: int,
    f: int,
    scale: float | None = None,
    rate: float = 1.0,
    bound: float | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Scale the attackers' update up so that the average becomes the attackers' model.

    Parameters
    ----------
    scale
        None takes n / (rate * f): the f attackers share the boost of the paper's n / eta.
    rate
        The server's learning rate on the average (eta).
    bound
        Project to this norm after scaling, to pass a norm check.

    Notes
    -----
    ``own`` holds the attackers' poisoned updates X - G. Without it the target is minus the
    honest mean, an interpretation: the model as it would be after one step backwards.

    References
    ----------
    Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020, equation 3.
    """
    if scale is None:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"model_replacement needs rate > 0, got {rate}")
        scale = n / (rate * f)
    factor = finite(scale, "model_replacement", "scale")
    target = -own_or_mean(honest, None, f) if own is None else own.to(honest)
    sent = factor * target
    if bound is None:
        return sent
    norms = torch.linalg.vector_norm(sent, dim=1, keepdim=True)
    limit = finite(bound, "model_replacement", "bound", low=0)
    # A row of zeros stays: its quotient is huge or infinite, and is cut to 1.
    return sent * (limit / norms.clamp(min=torch.finfo(sent.dtype).tiny)).clamp(max=1)
