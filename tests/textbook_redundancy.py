"""Slow, literal versions of the redundancy schemes, straight from the papers' text."""

from __future__ import annotations

import itertools


def wrong_files_by_majority(blocks: list[set[int]], byzantine: set[int]) -> int:
    """Count the blocks in which the Byzantine workers are more than half."""
    return sum(2 * len(block & byzantine) > len(block) for block in blocks)


def worst_majority(blocks: list[set[int]], workers: int, q: int) -> int:
    """Try every set of q workers."""
    sets = itertools.combinations(range(workers), q)
    return max(wrong_files_by_majority(blocks, set(byzantine)) for byzantine in sets)


def least_majority(blocks: list[set[int]], workers: int, q: int) -> int:
    """Try every set of q workers, for the fewest."""
    sets = itertools.combinations(range(workers), q)
    return min(wrong_files_by_majority(blocks, set(byzantine)) for byzantine in sets)


def agreements(returned: dict[tuple[int, int], object], workers: int) -> list[list[int]]:
    """Count equal values pair by pair and file by file."""
    files = {file for _, file in returned}
    alpha = [[0] * workers for _ in range(workers)]
    for i, j in itertools.permutations(range(workers), 2):
        for file in files:
            if (i, file) in returned and (j, file) in returned:
                alpha[i][j] += returned[i, file] == returned[j, file]
    return alpha


def maximal_cliques(edges: set[frozenset[int]], workers: int) -> list[set[int]]:
    """Test every subset of the workers."""
    cliques = [
        set(subset)
        for size in range(1, workers + 1)
        for subset in itertools.combinations(range(workers), size)
        if all(frozenset(pair) in edges for pair in itertools.combinations(subset, 2))
    ]
    return [one for one in cliques if not any(one < other for other in cliques)]


def degree_rule(
    disagreements: list[set[tuple[int, int]]], workers: int, q: int, length: int
) -> list[list[int]]:
    """Aspis+: the list of flagged workers after each iteration, from the pairs that disagreed."""
    history = []
    edges: set[tuple[int, int]] = set()
    flagged: list[int] = []
    for t, pairs in enumerate(disagreements):
        if t % length == 0:
            edges = {(i, j) for i in range(workers) for j in range(workers) if i != j}
            flagged = []
        edges -= {(i, j) for i, j in pairs} | {(j, i) for i, j in pairs}
        for worker in range(workers):
            degree = sum(1 for i, _ in edges if i == worker)
            if degree < workers - q - 1 and worker not in flagged:
                flagged.append(worker)
        if len(flagged) > q:
            flagged = flagged[len(flagged) - q :]
        history.append(list(flagged))
    return history
