"""Clients that count more or less: weights of the operator's, and claims that are cut.

Weights that clients claim may not enter a robust rule as they are: one claim of 1e9 examples would
own the result. What may: weights that the operator attests, or claims cut so that no f clients hold
more than a stated share. A rule's breakdown is then in weight: it bears Byzantine clients as long
as the f heaviest hold less than half (or what the rule says) of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.ranges import real, whole


def shares(weights: Tensor | Sequence[float], n: int) -> Tensor:
    """Return n weights as shares of 1, float64 on the CPU.

    Raises
    ------
    ValueError
        For another number of weights, one that is negative or not finite, or only zeros.
    """
    given = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().flatten()
    if len(given) != n:
        raise ValueError(f"{n} updates need as many weights, got {len(given)}")
    if not bool(torch.isfinite(given).all()) or float(given.min()) < 0:
        raise ValueError(f"weights need to be finite and at least 0, got {given.tolist()}")
    largest = float(given.max())
    if largest == 0:
        raise Refusal("weights need at least one above 0, got zeros only")
    scaled = given / largest  # before the sum: huge weights may not overflow it
    return scaled / scaled.sum()


def slack(n: int) -> float:
    """Return what rounding may add to a sum of n shares: less than this of a row's mass is none.

    Without it a row that is cut would keep the share 1e-17, which a value of 1e30 turns into 1e13.
    """
    return 8 * n * torch.finfo(torch.float64).eps


def heaviest(weights: Tensor, f: int) -> float:
    """Return the share that the f heaviest clients hold together."""
    return float(weights.sort(descending=True).values[:f].sum())


def bearable(weights: Tensor, f: int, who: str) -> float:
    """Return the share of the f heaviest, if less than half.

    Raises
    ------
    ValueError
        ``trimmed_mean with f=2: the 2 heaviest clients hold 52 % of the weight, it bears less than
        50 %``.
    """
    share = heaviest(weights, f)
    # Half but for rounding is half.
    if share >= 0.5 - slack(len(weights)):
        heavy = f"the {f} heaviest clients hold" if f > 1 else "the heaviest client holds"
        raise Refusal(
            f"{who} with f={f}: {heavy} {share:.0%} of the weight, it bears less than 50%; truncate"
            " the weights"
        )
    return share


def truncated(claims: Tensor | Sequence[float], *, f: int, share: float) -> Tensor:
    """Cut claimed weights at the largest cap under which no f clients hold more than a share.

    Parameters
    ----------
    claims
        (n,), what clients say. One that is negative or not a number counts as 0, an infinite one
        as the largest finite.
    f
        How many clients may be Byzantine, at least 1.
    share
        The most that any f of them may hold together, in (f / n, 1).

    Returns
    -------
    Tensor
        (n,) shares of 1, float64.

    Raises
    ------
    ValueError
        If even equal weights would give f clients more than the share, or all claims are 0.

    References
    ----------
    Portnoy, Tirosh, Hendler, Towards Federated Learning with Byzantine-Robust Client Weighting,
    2020 (arXiv 2004.04986), section 4: truncation of the weights at U.
    """
    given = torch.as_tensor(claims, dtype=torch.float64).detach().cpu().flatten()
    n = len(given)
    whole(f, "truncated weights", "f", low=1)
    real(share, "truncated weights", "share", above=f / n if n else 0, high=1)
    finite = given[torch.isfinite(given)]
    most = float(finite.max()) if len(finite) else 1.0
    given = torch.where(given > most, most, given.nan_to_num(nan=0.0)).clamp(min=0)
    unit = float(given.sort(descending=True).values[f])
    # In units of a client beside the f largest: one claim of 1e300 may not make the others vanish.
    cap = _cap(given / unit, f, share) if unit > 0 else 0.0
    if cap == 0:
        raise ValueError(
            f"truncated weights: fewer than {f} / {share:g} clients claim anything, so that f={f}"
            f" of them hold more than {share:g} under any cap"
        )
    return shares((given / unit).clamp(max=cap), n)


def _cap(claims: Tensor, f: int, share: float) -> float:
    """Return the largest cap under which the f largest hold the share at most; 0 if none does.

    Where k claims are cut the f largest hold f caps (k >= f), or k caps and the rest of the f. So
    the cap at which they hold just the share is known for each k; it has to cut k claims.
    """
    ordered = claims.sort(descending=True).values
    beside = float(ordered[f:].sum())
    # No cap that binds is beyond this, and it cuts nobody where none has to bind.
    limit = share / (1 - share) * beside if share < 1 else float("inf")
    ordered = ordered.clamp(max=limit)
    if heaviest(ordered, f) <= share * float(ordered.sum()):
        return float(ordered[0])
    for k in range(1, len(ordered) + 1):
        rest = float(ordered[k:].sum())
        room = share * rest - float(ordered[k:f].sum())
        held = min(k, f) - share * k
        cap = float(ordered[k - 1])
        if held > 0:
            cap = min(cap, max(0.0, room / held))
        if cap > 0 and (k == len(ordered) or cap >= float(ordered[k])):
            return cap
    return 0.0


def weighted_ranks(values: Tensor, weights: Tensor, low: float, high: float) -> Tensor:
    """Average, per column, the mass between two quantiles of the weighted values: (n, b) -> (b,).

    Parameters
    ----------
    values
        (n, b).
    weights
        (n,), adding up to 1.
    low, high
        0 <= low < high <= 1; a value counts by how much of its mass is between them.
    """
    ordered, order = values.double().sort(dim=0, stable=True)
    mass = weights.to(values.device)[order]
    until = mass.cumsum(0)
    inside = until.clamp(max=high) - (until - mass).clamp(min=low)
    inside = torch.where(inside > slack(len(weights)), inside, 0.0)
    return ((inside * ordered).sum(0) / inside.sum(0)).to(values.dtype)


def weighted_median(values: Tensor, weights: Tensor, *, lower: bool = False) -> Tensor:
    """Take the value at half of the mass of each column: (n, b) -> (b,).

    Where half of the mass ends exactly with a value (equal weights and even n), the mean of that
    value and the next, or the lower of them.
    """
    ordered, order = values.sort(dim=0, stable=True)
    until = weights.to(values.device)[order].cumsum(0)
    near = slack(len(weights))
    first = (until >= 0.5 - near).int().argmax(0)
    below = ordered.gather(0, first[None])[0]
    if lower:
        return below
    after = (until > 0.5 + near).int().argmax(0)
    above = ordered.gather(0, after[None])[0]
    # Not (below + above) / 2: the sum may overflow.
    return below / 2 + above / 2
