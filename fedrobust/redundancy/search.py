"""The set of q workers that spoils the most (or the fewest) file votes, found exactly."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from fedrobust.redundancy.assignment import Assignment

NODES = 20_000_000


class NotApplicable(ValueError):
    """A figure that does not exist for these parameters, or is out of the search's reach."""


def extreme_set(
    assignment: Assignment,
    *,
    q: int,
    least: bool = False,
    nodes: int = NODES,
    needed: Tensor | None = None,
) -> tuple[int, tuple[int, ...]]:
    """Return how many files have a Byzantine majority, and the lexicographically first such set.

    Branch and bound over all sets of q workers. A file is lost where more than half of its copies
    are Byzantine; or, with ``needed`` (files,) int64 of at least 1, where that many are. ``least``
    looks for the fewest lost files instead.

    Raises
    ------
    NotApplicable
        If the search needs more than ``nodes`` steps.
    """
    matrix = assignment.matrix.numpy()
    most = max(max(assignment.loads), 1)
    files = np.full((assignment.workers, most), -1, dtype=np.int64)
    for worker, row in enumerate(matrix):
        held = np.flatnonzero(row)
        files[worker, : len(held)] = held
    # More than half of the copies.
    bar = matrix.sum(0) // 2 + 1 if needed is None else needed.numpy()
    chosen, count, steps = _search(files, bar.astype(np.int64), q, least, nodes)
    # The best of a search that was cut short bounds nothing.
    if steps >= nodes:
        raise NotApplicable(
            f"the exact search over {q} of {assignment.workers} workers needs more than"
            f" {nodes} steps"
        )
    return int(count), tuple(int(worker) for worker in chosen)


@numba.njit(inline="always")
def _reach(waiting: np.ndarray, picks: int, load: int) -> int:
    """Bound the files that the remaining picks can still win: cheapest files first."""
    budget, gain = picks * load, 0
    # A file that lacks more copies than there are picks left cannot fall.
    for lack in range(1, min(picks, len(waiting) - 1) + 1):
        won = min(waiting[lack], budget // lack)
        gain += won
        budget -= won * lack
    return gain


@numba.njit(inline="always")
def _move(lack: np.ndarray, waiting: np.ndarray, held: np.ndarray, change: int) -> int:
    """Add (-1) or remove (+1) one worker: update what each file lacks; return the files won."""
    won = 0
    for file in held:
        if file < 0:
            break
        before = lack[file]
        lack[file] = before + change
        if before > 0:
            waiting[before] -= 1
        if before + change > 0:
            waiting[before + change] += 1
        if before == 1 and change == -1:
            won += 1
        if before == 0 and change == 1:
            won -= 1
    return won


@numba.njit(nogil=True, cache=True)
def _search(
    files: np.ndarray, needed: np.ndarray, q: int, least: bool, nodes: int
) -> tuple[np.ndarray, int, int]:
    """Depth first over sets in lexicographic order; one step per worker tried."""
    workers, load = files.shape
    lack = needed.copy()
    waiting = np.zeros(needed.max() + 1, dtype=np.int64)
    for file in range(len(needed)):
        waiting[needed[file]] += 1
    chosen = np.full(max(q, 1), -1, dtype=np.int64)
    best = np.arange(q)
    score = len(needed) + 1 if least else -1
    depth, lost, steps = 0, 0, 0
    if q == 0:
        return best, 0, 0
    while depth >= 0 and steps < nodes:
        if chosen[depth] >= 0:
            lost += _move(lack, waiting, files[chosen[depth]], 1)
            chosen[depth] += 1
        else:
            chosen[depth] = chosen[depth - 1] + 1 if depth > 0 else 0
        # Too few workers are left behind this one to fill the set.
        if chosen[depth] > workers - (q - depth):
            chosen[depth] = -1
            depth -= 1
            continue
        steps += 1
        lost += _move(lack, waiting, files[chosen[depth]], -1)
        left = q - depth - 1
        reach = 0 if least else _reach(waiting, left, load)
        # Adding workers never saves a file. Strict: of equal sets the first in order stays.
        promising = lost < score if least else lost + reach > score
        if promising and left == 0:
            score = lost
            best[:] = chosen[:q]
        elif promising:
            depth += 1
            chosen[depth] = -1
    return best, score, steps
