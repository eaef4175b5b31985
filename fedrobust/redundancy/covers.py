"""Vertex covers of the disagreement graph: who may be Byzantine, if at most q workers are.

The workers that agree pairwise are a clique of the agreement graph; the others cover every edge of
its complement, the disagreement graph. A clique of at least K - q workers is therefore a vertex
cover of at most q workers, and the search is exponential in q at most, never in K. Graphs are
lists of bit masks: bit j of ``graph[i]`` is set where workers i and j disagree.

Every search counts its nodes and stops at a cap: a cap in steps gives the same answer on every
machine, a cap in seconds does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

NODES = 50_000  # about half a second


def graph_of(edges: np.ndarray) -> list[int]:
    """Turn a symmetric bool matrix (K, K) into one bit mask of neighbours per worker."""
    return [sum(1 << int(j) for j in np.flatnonzero(row)) for row in edges]


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def minimal_covers(
    graph: Sequence[int], *, most: int, nodes: int = NODES, limit: int | None = None
) -> tuple[list[int], bool]:
    """List the minimal vertex covers of at most ``most`` workers, as bit masks.

    Parameters
    ----------
    graph
        Neighbours of each worker.
    nodes, limit
        Bounds on the search, in nodes of its tree and in covers found.

    Returns
    -------
    The covers, each once, and whether a bound cut the list short.
    """
    found: list[int] = []
    steps = 0
    waiting = [(0, (1 << len(graph)) - 1)]
    while waiting:
        steps += 1
        # One beyond the limit shows that there are more than the limit.
        if steps > nodes or (limit is not None and len(found) > limit):
            return found[:limit], True
        cover, left = waiting.pop()
        worker, degree = _busiest(graph, left)
        if degree == 0:
            # Minimal: each member covers an edge alone, or the clique beside is not maximal.
            if all(graph[member] & ~cover for member in bits(cover)):
                found.append(cover)
            continue
        waiting += _branches(graph, cover, left, worker, degree, most)
    over = limit is not None and len(found) > limit
    return found[:limit], over


def coverable(graph: Sequence[int], within: int, most: int, *, nodes: int = NODES) -> bool | None:
    """Say whether ``most`` workers can cover every edge among the workers of the mask ``within``.

    None where the search needs more than ``nodes`` nodes.
    """
    if most < 0:
        return False
    steps = 0
    waiting = [(0, within)]
    while waiting:
        steps += 1
        if steps > nodes:
            return None
        cover, left = waiting.pop()
        worker, degree = _busiest(graph, left)
        if degree == 0:
            return True
        if degree == 1:  # a matching is left: one worker of each pair
            if cover.bit_count() + _matching(graph, left) <= most:
                return True
            continue
        waiting += _branches(graph, cover, left, worker, degree, most)
    return False


def _branches(
    graph: Sequence[int], cover: int, left: int, worker: int, degree: int, most: int
) -> list[tuple[int, int]]:
    """Decide on one worker: it covers its edges, or all its neighbours do."""
    room = most - cover.bit_count()
    if _matching(graph, left) > room:  # the pairs of a matching need one worker each
        return []
    neighbours, one = graph[worker] & left, 1 << worker
    result = []
    if degree <= room:
        result.append((cover | neighbours, left & ~neighbours & ~one))
    # Last in, first out: the busiest worker itself is tried before its neighbours.
    result.append((cover | one, left & ~one))
    return result


def _busiest(graph: Sequence[int], left: int) -> tuple[int, int]:
    """Return the worker with the most disagreements among those left, and their number."""
    worker, degree = -1, 0
    for other in bits(left):
        count = (graph[other] & left).bit_count()
        if count > degree:
            worker, degree = other, count
    return worker, degree


def _matching(graph: Sequence[int], left: int) -> int:
    """Return the size of a maximal matching, found greedily."""
    count = 0
    while left:
        low = left & -left
        left ^= low
        if partners := graph[low.bit_length() - 1] & left:
            left ^= partners & -partners
            count += 1
    return count
