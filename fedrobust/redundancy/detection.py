"""Aspis: find the honest workers as a clique of the agreement graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedrobust.redundancy.assignment import check_byzantine
from fedrobust.redundancy.covers import NODES, bits, graph_of, minimal_covers

RULES = ("strict", "paper")
MOST_CLIQUES = 1000


@dataclass(frozen=True)
class Detection:
    """Outcome of the clique rule.

    ``accepted``: the honest workers are known, as ``honest``; all others that were heard are
    ``byzantine``. Otherwise ``byzantine`` holds the workers whose degree alone convicts them
    (nobody if they are more than q, which refutes q), and the caller falls back to votes and a
    robust rule. ``absent`` workers shared no file with anyone. ``cliques`` are the cliques that
    decided: those of at least K-q workers (strict), or the largest ones (paper). ``capped``: the
    enumeration was cut short, so the list is not complete.
    """

    accepted: bool
    honest: frozenset[int]
    byzantine: frozenset[int]
    cliques: list[tuple[int, ...]]
    absent: frozenset[int] = frozenset()
    capped: bool = False


def detect(
    agreement: Tensor,
    *,
    q: int,
    files_per_pair: int | Tensor,
    rule: str = "strict",
    nodes: int = NODES,
    limit: int = MOST_CLIQUES,
) -> Detection:
    """Look for the honest workers in the agreement graph.

    An edge joins two workers that agree on all files they share. Workers of degree below K-q-1
    are removed (again and again), then the maximal cliques of the rest are listed, as complements
    of the minimal vertex covers of the disagreement graph.
    ``rule="strict"`` accepts if exactly one maximal clique has at least K-q workers: whichever
    clique is the honest one, it is among them. ``rule="paper"`` accepts a unique maximum clique; it
    can be fooled, see `fedrobust.redundancy.worst_case.small_d_count`. After an acceptance with
    fewer than q workers flagged, files held by Byzantine workers only can still be wrong: keep a
    robust second stage.

    Parameters
    ----------
    agreement
        (K, K) symmetric counts of agreements, workers 0..K-1; the diagonal is ignored.
    q
        The most Byzantine workers there can be, q < K/2.
    files_per_pair
        Files that each pair shares: one number, or (K, K) counts. A pair that shares none is no
        evidence against either, so its edge stays (otherwise honest workers need not be a clique);
        a worker that shares none with anyone is absent: it lowers K and is in neither set.
    nodes, limit
        Bounds on the enumeration, in nodes of the search and in maximal cliques; beyond them
        ``capped`` is set and nothing is accepted.

    Raises
    ------
    ValueError
        If q, the rule or the counts are not valid.

    Reference
    ---------
    ISIT 2022 and ToN 2023, Aspis detection (rule "paper"); the strict rule is ours and restores
    Theorem 1 of ToN 2023.
    """
    counts, shared = _checked(agreement, files_per_pair)
    workers = len(counts)
    check_byzantine(workers, q)
    if rule not in RULES:
        raise ValueError(f"unknown clique rule {rule!r}; choose from {', '.join(RULES)}")
    # A worker that is alone shares no file with anyone, and is not absent for it.
    silent = (shared.sum(1) == 0) & (workers > 1)
    absent = frozenset(np.flatnonzero(silent).tolist())
    heard = frozenset(range(workers)) - absent
    size = len(heard) - q
    # A pair without a shared file has 0 == 0: its edge stays.
    edges = (counts == shared) & ~silent & ~silent[:, None]
    np.fill_diagonal(edges, False)
    # By name as well: where size is 1 a degree of 0 is enough, and absent workers have that.
    kept = prune(edges, least=size - 1) - absent
    cliques, capped = _cliques(edges, kept, size, nodes=nodes, limit=limit)
    if rule == "paper" and cliques:
        largest = max(map(len, cliques))
        cliques = [clique for clique in cliques if len(clique) == largest]
    accepted = not capped and len(cliques) == 1 and 2 * q < len(heard)
    honest = frozenset(cliques[0]) if accepted else frozenset()
    convicted = heard - kept if len(heard - kept) <= q else frozenset()  # more refute q itself
    byzantine = heard - honest if accepted else convicted
    return Detection(accepted, honest, byzantine, sorted(cliques), absent, capped)


def prune(edges: np.ndarray, *, least: int) -> frozenset[int]:
    """Return the workers left after removing, until none is left, those of too small a degree.

    Honest workers form a clique, so their degree among the rest never falls below K-q-1.
    """
    alive = np.ones(len(edges), dtype=bool)
    while True:
        low = alive & ((edges & alive).sum(1) < least)
        if not low.any():
            return frozenset(np.flatnonzero(alive).tolist())
        alive &= ~low


def _cliques(
    edges: np.ndarray, kept: frozenset[int], size: int, *, nodes: int, limit: int
) -> tuple[list[tuple[int, ...]], bool]:
    """List maximal cliques of at least ``size`` workers; say whether a bound cut the list short."""
    members = sorted(kept)
    if len(members) < size or not members:
        return [], False
    apart = ~edges[np.ix_(members, members)]
    np.fill_diagonal(apart, False)
    # At most q less those pruned may be left out of a clique.
    most = len(members) - size
    covers, capped = minimal_covers(graph_of(apart), most=most, nodes=nodes, limit=limit)
    everyone = (1 << len(members)) - 1
    return [tuple(members[i] for i in bits(everyone & ~cover)) for cover in covers], capped


def _checked(agreement: Tensor, files_per_pair: int | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return agreements and shared files of each pair as arrays, zero on the diagonal, checked."""
    if agreement.ndim != 2 or agreement.shape[0] != agreement.shape[1]:
        raise ValueError(f"agreement must be a (K, K) matrix, got {tuple(agreement.shape)}")
    # A copy: the diagonal is written below, and numpy() shares the caller's memory.
    counts = agreement.detach().cpu().numpy().copy()
    if isinstance(files_per_pair, Tensor):
        shared = files_per_pair.detach().cpu().numpy().copy()
        if shared.shape != counts.shape:
            raise ValueError(f"files_per_pair must be {counts.shape}, got {shared.shape}")
    else:
        shared = np.full_like(counts, files_per_pair)
    np.fill_diagonal(shared, 0)
    np.fill_diagonal(counts, 0)
    if (counts != counts.T).any() or (shared != shared.T).any():
        raise ValueError("agreement and files_per_pair must be symmetric")
    if (counts < 0).any() or (counts > shared).any():
        raise ValueError("a pair cannot agree on fewer than 0 or more than the files it shares")
    return counts, shared
