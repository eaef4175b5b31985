"""Rules that remember each client's past: FoolsGold, Safeguard, clipped clustering.

Their memory is a table of tensors. What belongs to a client is stored under its number, so that one
that is missing for a round keeps its past and nobody takes over another's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.distances import (
    TINY,
    clipping,
    cosine_distances,
    cosines,
    middle,
    norms,
    squared_distances,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal
from fedrobust.ranges import real, truth, whole
from fedrobust.spec import SpecError

Memory = dict[str, Tensor]


def add_to(memory: Memory | None, updates: Tensor, clients: Tensor, *, scale: float = 1) -> Memory:
    """Return each client's sum with its update added: ``clients`` (N,), ``sums`` (N, d)."""
    # Sums of another number of coordinates belong to another model: the past is void.
    if memory is None or memory["sums"].shape[1] != updates.shape[1]:
        return {"clients": clients.clone(), "sums": updates * scale}
    known, sums = memory["clients"], memory["sums"]
    if torch.equal(known, clients):
        # Not in place: memory is a value, and the caller keeps the one it gave.
        return {"clients": known, "sums": sums.add(updates, alpha=scale)}
    fresh = clients[~torch.isin(clients, known)]
    if len(fresh):
        known = torch.cat([known, fresh])
        sums = torch.cat([sums, sums.new_zeros(len(fresh), sums.shape[1])])
    places = places_of(clients, known)
    added = sums.index_add(0, places.to(sums.device), updates, alpha=scale)
    return {"clients": known, "sums": added}


def sums_of(memory: Memory, clients: Tensor) -> Tensor:
    """Return the sums of some clients, in their order."""
    if torch.equal(memory["clients"], clients):
        return memory["sums"]
    return memory["sums"][places_of(clients, memory["clients"]).to(memory["sums"].device)]


def places_of(clients: Tensor, known: Tensor) -> Tensor:
    """Return where each client stands among the known ones."""
    return (clients[:, None] == known[None, :]).int().argmax(1)


def numbered(updates: Tensor, clients: Tensor | None) -> Tensor:
    """Return the clients' numbers; their places where none are given."""
    return torch.arange(len(updates)) if clients is None else clients.cpu()


def foolsgold_rates(history: Tensor) -> Tensor:
    """Return each client's learning rate in [0, 1] from its summed updates.

    Cosines within rounding of 1 count as 1: the rates of twins would else be rounding noise, which
    the division by the greatest rate blows up to any value where every client has a twin.
    """
    cosine = cosines(history)
    noise = 64 * torch.finfo(history.dtype).eps
    cosine = torch.where(cosine > 1 - noise, 1.0, cosine).fill_diagonal_(0)
    most = cosine.max(1).values
    ratio = most[:, None] / most[None, :].clamp(min=TINY)
    pardon = torch.where(most[:, None] < most[None, :], ratio, 1.0)
    rate = (1 - (cosine * pardon).fill_diagonal_(-torch.inf).max(1).values.clamp(min=0)).clamp(0, 1)
    rate = rate / rate.max().clamp(min=TINY)
    # The logit of 1 below would be infinite.
    rate = rate.clamp(max=0.99)
    return (torch.log(rate / (1 - rate)) + 0.5).clamp(0, 1)


def foolsgold_step(
    updates: Tensor,
    *,
    normalise: bool = False,
    memory: Memory | None = None,
    clients: Tensor | None = None,
) -> Outcome:
    """Slow down clients whose accumulated updates point the same way as another's.

    Parameters
    ----------
    normalise
        Whether the weights are divided by their sum, as several programs do; the original does not.
    memory
        What earlier calls remembered; nothing at first.
    clients
        The rows' clients (n,), for the memory; their places unless given.

    References
    ----------
    Fung, Yoon, Beschastnikh, The Limitations of Federated Learning in Sybil Settings, RAID 2020,
    Algorithm 1. Punishes similar honest clients: not for IID data.
    """
    numbers = numbered(updates, clients)
    truth(normalise, "foolsgold", "normalise")
    after = add_to(memory, updates, numbers)
    rates = foolsgold_rates(sums_of(after, numbers))
    if normalise:
        rates = rates / rates.sum().clamp(min=TINY)
    return Outcome(weighted(updates, rates), after, rates)


def central_row(sums: Tensor, threshold: float, good: Tensor) -> Tensor | None:
    """Return the squared distances from the first good row with most rows within the threshold.

    Most of all rows, but counted among the good ones: who is out neither is the centre nor makes
    somebody the centre.
    """
    squared = squared_distances(sums)
    close = (squared <= threshold**2) & good[None, :] & good[:, None]
    most = close.sum(1) * 2 > len(sums)
    return squared[int(most.nonzero()[0])] if bool(most.any()) else None


def safeguard_step(
    updates: Tensor,
    *,
    window: int,
    threshold: float,
    short_window: int,
    short_threshold: float,
    factor: float = 2.0,
    noise: float = 0.0,
    memory: Memory | None = None,
    clients: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Exclude for good whoever's summed updates leave the majority's, over two windows of rounds.

    A central client has more than half of all within a threshold of its sum; who is farther from it
    than ``factor`` thresholds in either window is out. Where no client is central nobody leaves.

    Parameters
    ----------
    window, short_window
        Rounds after which the sums start anew (T_1 >= T_0).
    threshold, short_threshold
        Radii in units of an update's norm: each round adds update / number of good clients.
    factor
        2 in the paper, 1 in epfml's program.
    noise
        Standard deviation of the Gaussian noise that is added to the aggregate.
    memory, clients
        See ``foolsgold``. The memory is two matrices of the size of the updates.

    Raises
    ------
    ValueError
        For settings out of range, or if nobody is left.

    References
    ----------
    Allen-Zhu, Ebrahimianghazani, Li, Alistarh, Byzantine-Resilient Non-Convex Stochastic Gradient
    Descent, ICLR 2021, Algorithm 1 (double safeguard). The average is over those who pass this
    round's check. Needs f < n / 2.
    """
    _check_safeguard(window, short_window, noise=noise)
    for key, value in (
        ("threshold", threshold), ("short_threshold", short_threshold), ("factor", factor),
    ):  # fmt: skip
        real(value, "safeguard", key, above=0)
    numbers = numbered(updates, clients)
    kept: Memory = dict(memory) if memory else {}
    turn = int(kept.get("round", torch.tensor(0)))
    out = kept.get("out", numbers[:0])
    was_good = ~torch.isin(numbers, out)
    good = was_good.clone()
    if not bool(good.any()):
        raise Refusal(f"safeguard has excluded all {len(numbers)} clients that answered")
    share = 1 / int(good.sum())
    after: Memory = {"round": torch.tensor(turn + 1)}
    for name, length, limit in (
        ("long", window, threshold),
        ("short", short_window, short_threshold),
    ):
        before = None if turn % length == 0 or f"{name}_clients" not in kept else {
            "clients": kept[f"{name}_clients"], "sums": kept[name],
        }  # fmt: skip
        table = add_to(before, updates, numbers, scale=share)
        after |= {name: table["sums"], f"{name}_clients": table["clients"]}
        away = central_row(sums_of(table, numbers), limit, was_good)
        if away is not None:
            good &= away <= (factor * limit) ** 2
    if not bool(good.any()):
        raise Refusal(f"safeguard excluded all {len(numbers)} clients that answered")
    after["out"] = torch.cat([out, numbers[~good & ~torch.isin(numbers, out)]])
    weights = even(good.nonzero().flatten(), len(updates))
    result = weighted(updates, weights)
    if noise:
        # Drawn on the CPU, so that the noise is the same wherever the updates are.
        draw = torch.randn(result.shape, generator=generator, dtype=result.dtype)
        result = result + noise * draw.to(result)
    return Outcome(result, after, weights)


def _check_safeguard(window: int, short_window: int, *, noise: float) -> None:
    whole(window, "safeguard", "window", low=1)
    whole(short_window, "safeguard", "short_window", low=1)
    if short_window > window:
        raise SpecError(
            f"safeguard needs 1 <= short_window <= window, got {short_window} and {window}"
        )
    real(noise, "safeguard", "noise", low=0)


def clipped_clustering_step(updates: Tensor, *, memory: Any = None) -> Outcome:
    """Clip to the median norm of all rounds, split in two clusters by angle, average the larger.

    Average linkage on cosine distances; clusters of equal size: the one that holds the first row.

    Parameters
    ----------
    memory
        The norms of earlier rounds (k,); nothing at first.

    References
    ----------
    Li, Ngai, Voigt, An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated
    Learning, IEEE Transactions on Big Data 2024 (ClippedClustering). Needs f < n / 2.
    """
    from sklearn.cluster import AgglomerativeClustering

    n, lengths = len(updates), norms(updates)
    past = lengths if memory is None else torch.cat([memory, lengths])
    scales = clipping(lengths, middle(past))
    # One row is a cluster by itself, and sklearn refuses to cluster fewer than two.
    if n < 2:
        return Outcome(weighted(updates, scales), past, scales)
    labels = torch.from_numpy(
        AgglomerativeClustering(2, metric="precomputed", linkage="average")
        .fit(cosine_distances(updates).numpy())
        .labels_
    )
    sizes = labels.bincount(minlength=2)
    # The clustering numbers its clusters as it likes: a tie is decided by the first row.
    larger = labels == (labels[0] if sizes[0] == sizes[1] else sizes.argmax())
    weights = torch.where(larger, scales, 0.0) / int(larger.sum())
    return Outcome(weighted(updates, weights), past, weights)
