"""Fake clients without data that push in one direction for many rounds (PoisonedFL)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.attacks.moments import repeat
from fedrobust.attacks.probe import draws
from fedrobust.attacks.record import Crafted
from fedrobust.ranges import real, whole

# Keeps 0 / 0 out where nothing was sent before or nothing moved.
TINY = 1e-9
State = dict[str, Tensor]


def poisoned_fl(
    honest: Tensor,
    *,
    n: int,
    f: int,
    factor: float = 8.0,
    period: int = 50,
    decay: float = 0.7,
    least: float = 0.5,
    round: int = 0,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
    state: State | None = None,
) -> Crafted:
    """Push all rounds along one random sign vector, as far as the defence lets through.

    The attackers need no data: they look at the server's last step alone. Each coordinate is pushed
    by how much of that step was not their own last update (both of one length); the length is
    ``factor`` times the step's. Where the model has not followed them over a period, ``factor``
    shrinks: whatever is that conspicuous is being rejected. In the first round they send zeros.

    Parameters
    ----------
    factor, decay, least
        c, what it is multiplied by where the model did not follow, and what it stays above.
    period
        Rounds between two looks at whether the model follows: it does if the signs of its steps
        since the last look agree with theirs in more coordinates than 99 % of random signs would.

    References
    ----------
    Xie, Fang, Gong, Model Poisoning Attacks to Federated Learning via Multi-Round Consistency, CVPR
    2025, section 4, equations 6 and 7, and the authors' program (beta = 0.7, e = 50, c >= 0.5). A
    coordinate that did not move counts as not following; the program takes the model's own sign.
    """
    real(factor, "poisoned_fl", "factor", above=0)
    real(decay, "poisoned_fl", "decay", above=0, high=1)
    real(least, "poisoned_fl", "least", low=0)
    whole(period, "poisoned_fl", "period", low=1)
    kept = state or _fresh(honest, factor, draws(generator, honest, "poisoned_fl", round))
    signs, moved = kept["signs"].to(honest.device), kept["moved"].to(honest.device)
    # No step to look at yet; the signs are drawn now, and stay for the whole run.
    if previous is None:
        return Crafted(repeat(torch.zeros_like(signs), f, honest), kept)
    step = previous.double()
    moved = moved + step
    push = float(kept["factor"])
    if round > 0 and round % period == 0:
        follows = int((moved.sign() == signs).sum()) >= chance(len(signs))
        if not follows and push * decay >= least:
            push *= decay
        moved = torch.zeros_like(moved)
    sent = _pushed(step, kept["sent"].to(step), signs, push)
    after = {"signs": signs, "sent": sent, "moved": moved, "factor": torch.tensor(push)}
    # float32 on the CPU, as a state is kept: the next round may run on another device.
    remembered = {key: value.float().cpu() for key, value in after.items()}
    return Crafted(repeat(sent, f, honest), remembered)


def chance(d: int) -> int:
    """Return in how many of d coordinates random signs agree at most, in 99 of 100 cases."""
    # Here, not at the top: scipy.stats takes long to import.
    from scipy.stats import binom

    return int(binom.ppf(0.99, d, 0.5))


def _fresh(honest: Tensor, factor: float, source: torch.Generator) -> State:
    d = honest.shape[1]
    signs = torch.randint(0, 2, (d,), generator=source, device=source.device).float().cpu() * 2 - 1
    nothing = torch.zeros(d)
    # One tensor for both: a state is never written to.
    return {"signs": signs, "sent": nothing, "moved": nothing, "factor": torch.tensor(factor)}


def _pushed(step: Tensor, sent: Tensor, signs: Tensor, push: float) -> Tensor:
    """Return what to send, from the last step and what was sent before it, (d,) each."""
    length, own = float(step.norm()), float(sent.norm())
    others = (step - sent * (length / (own + TINY))).abs()
    whole_length = float(others.norm())
    # A model that diverged gives no direction; what is not finite would be refused anyway.
    if not math.isfinite(whole_length):
        return torch.zeros_like(step)
    return push * length / (whole_length + TINY) * others * signs
