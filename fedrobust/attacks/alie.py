"""ALIE: stay inside the spread of the honest updates.

Baruch, Baruch, Goldberg, A Little Is Enough: Circumventing Defenses For Distributed Learning,
NeurIPS 2019 (arXiv 1902.06156).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

from fedrobust.attacks.moments import moments, repeat
from fedrobust.spec import suggest

FORMULAS = ("neurips", "arxiv_v1")


def supporters(n: int, f: int) -> int:
    """Honest clients that the f attackers still need for a majority: s = floor(n/2 + 1) - f.

    Raises
    ------
    ValueError
        If s <= 0: the attackers are a majority already and ALIE is pointless.
    """
    # The same as floor(n / 2 + 1) of the paper, without a float.
    s = n // 2 + 1 - f
    if s <= 0:
        raise ValueError(f"alie with n={n} needs f <= {n // 2}, a minority, got f={f}")
    return s


def z_max(n: int, f: int, formula: str = "neurips") -> float:
    """Return the largest shift, in standard deviations, at which s honest clients support it.

    "neurips": the inverse normal CDF at (n - f - s) / (n - f), Algorithm 3 of the paper.
    "arxiv_v1": at (n - s) / n, the preprint's quotient, which several libraries kept.
    Negative for f = 1 and even n; ``alie`` then uses 0.

    Raises
    ------
    ValueError
        For an unknown formula, f < 1, or attackers in the majority.
    """
    if formula not in FORMULAS:
        raise ValueError(f"unknown alie formula {formula!r}; {suggest(formula, list(FORMULAS))}")
    if f < 1:
        raise ValueError(f"alie needs f >= 1 to choose z, got f={f}")
    s = supporters(n, f)
    share = (n - f - s) / (n - f) if formula == "neurips" else (n - s) / n
    # inv_cdf refuses 0, and the quotient may be 0 or less: then no shift has enough supporters.
    return NormalDist().inv_cdf(share) if share > 0 else -math.inf


def support_probability(n: int, f: int, z: float) -> float:
    """Return the probability that at least s honest clients are beyond z, on one coordinate.

    The upper tail of Binomial(n - f, 1 - Phi(z)) from s on.
    """
    # A supporter is beyond z on one side, hence the upper tail alone.
    s, h, p = supporters(n, f), n - f, 1 - NormalDist().cdf(z)
    return sum(math.comb(h, k) * p**k * (1 - p) ** (h - k) for k in range(s, h + 1))


def shift(n: int, f: int, *, z: float | None, formula: str = "neurips") -> float:
    """Return the z to use: the given one, else the formula's, never below 0."""
    if z is None:
        return max(0.0, z_max(n, f, formula))
    if not math.isfinite(z):
        raise ValueError(f"alie needs a finite z, got {z}")
    return float(z)


def alie(
    honest: Tensor,
    *,
    n: int,
    f: int,
    z: float | None = None,
    formula: str = "neurips",
    sign: int = -1,
    ddof: int = 0,
) -> Tensor:
    """Send mean + sign * z * std from all f attackers: (h, d) -> (f, d).

    Parameters
    ----------
    z
        Shift in standard deviations; None takes ``z_max(n, f, formula)``, clamped to 0 where the
        formula is negative (then the attackers send the plain mean). The paper's experiments use
        1.5, far above the formula's 0.36 for n=51, f=12.
    formula
        "neurips" or "arxiv_v1", see ``z_max``.
    sign
        -1 (the paper: on gradients) or +1 (ByzFL, Blades).
    ddof
        0 (the paper's code) or 1.

    Raises
    ------
    ValueError
        If z is None and f > n / 2; if ddof = 1 and h = 1; for any other value of a setting.

    References
    ----------
    Algorithm 3. There, ``honest`` holds the attackers' own honest updates only ("colluding");
    with all honest updates it is the omniscient variant. h = 1 gives a spread of 0.
    """
    if sign not in (-1, 1):
        raise ValueError(f"alie needs sign=-1 or sign=1, got {sign!r}")
    used = shift(n, f, z=z, formula=formula)
    centre, std = moments(honest, ddof=ddof)
    return repeat(std.mul_(sign * used).add_(centre), f, honest)
