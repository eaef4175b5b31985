"""How far an attack goes at a given n and f, before any run: some send the honest mean itself."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.attacks.crafting import craft
from fedrobust.attacks.crafting import knowledge as plain
from fedrobust.attacks.impact import spread
from fedrobust.attacks.tables import ATTACKS, attack_record
from fedrobust.seeds import generator
from fedrobust.spec import Spec, split

WIDTH = 64
NOTHING = 1e-6  # of the honest spread: rounding
SHIFTED = 100.0  # how much larger the second mean is: an attack in units of spread ignores it


def strength(spec: Spec, *, n: int, f: int) -> float | None:
    """Return how far the crafted vectors are from the honest mean, in honest spreads.

    Returns
    -------
    The distance of the crafted rows' mean from the honest mean over the root mean squared distance
    of the honest updates from it; None where it does not depend on n and f alone: for attacks that
    ask the rule, remember, draw, train or break replies, and for those in units of the mean.
    """
    name = split(spec)[0]
    record = attack_record(name)
    known = name in ATTACKS and record.finite and record.spread and not record.trains
    if not known or record.asks_the_rule or record.remembers or record.random or n - f < 2:
        return None
    near, far = (_distance(spec, n, f, shift) for shift in (1.0, SHIFTED))
    return near if abs(near - far) <= 1e-3 * max(near, far, NOTHING) else None


def _distance(spec: Spec, n: int, f: int, shift: float) -> float:
    # The same draws for both shifts: the distances differ by the shift alone.
    source = generator(0, "strength")
    noise = torch.randn(n - f, WIDTH, generator=source, dtype=torch.float64)
    honest: Tensor = noise + shift * torch.randn(WIDTH, generator=source, dtype=torch.float64)
    sent = craft(honest, plain(spec)[0], n=n, f=f)
    return float(torch.linalg.vector_norm(sent.mean(0) - honest.mean(0))) / spread(honest)


def weakness(spec: Spec, *, n: int, f: int) -> str:
    """Say that an attack is none, or weaker than the honest spread; empty where it is neither."""
    found = strength(spec, n=n, f=f) if f > 0 else None
    name = split(spec)[0]
    if found is None or found >= 1:
        return ""
    if found <= NOTHING:
        return (
            f"vacuous: {name} with n = {n}, f = {f} sends the honest mean itself: it is no attack;"
            f" {_stronger(name)}"
        )
    return (
        f"weak: {name} with n = {n}, f = {f} stays {found:.2g} honest spreads from the honest mean,"
        f" nearer than an honest update is; {_stronger(name)}"
    )


def _stronger(name: str) -> str:
    z = "z sets its strength (1.5 in ALIE's own runs); " if name == "alie" else ""
    return f"{z}attack = 'auto' tries the strongest that are known"
