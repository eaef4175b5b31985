"""Aspis+: convict workers by their degree in a graph that loses edges over a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.redundancy.assignment import Assignment, check_byzantine


@dataclass(frozen=True)
class Window:
    """State of one detection window, a value: `window_step` returns the next one.

    ``iteration`` counts from 1 inside the window (0: nothing seen yet), ``disagreed`` is bool
    (K, K): pairs that disagreed on a file in this window. ``flagged`` holds the convicted workers,
    newest last, at most q of them.
    """

    iteration: int
    disagreed: Tensor
    flagged: tuple[int, ...] = ()

    @property
    def degrees(self) -> Tensor:
        """(K,) int64: the degree of each worker in the agreement graph."""
        return len(self.disagreed) - 1 - self.disagreed.sum(1)


def window_init(workers: int) -> Window:
    """Start with the complete graph and nobody flagged."""
    return Window(0, torch.zeros(workers, workers, dtype=torch.bool))


def window_step(
    window: Window, agreement: Tensor, *, q: int, files_per_pair: int | Tensor, length: int
) -> Window:
    """Add one iteration's evidence; a window of ``length`` iterations that is full starts anew.

    One disagreement removes an edge for the rest of the window; a worker of degree below K-q-1 is
    flagged. Beyond q flagged workers (the Byzantine workers changed inside the window) the newest q
    stay, by worker number within an iteration. Windows do not overlap.

    Parameters
    ----------
    agreement, files_per_pair
        (K, K) counts of agreements of this iteration, and of the files compared: one number, or
        (K, K). A pair that compared none keeps its edge.
    q, length
        q < K/2, and T_d >= 1.

    Reference
    ---------
    ToN 2023, Aspis+ detection (T_d = 15 in the experiments).
    """
    workers = len(window.disagreed)
    check_byzantine(workers, q)
    if length < 1:
        raise ValueError(f"a window needs a length of at least 1, got {length}")
    if agreement.shape != window.disagreed.shape:
        raise ValueError(f"agreement must be ({workers}, {workers}), got {tuple(agreement.shape)}")
    if window.iteration >= length:
        window = window_init(workers)
    off = ~torch.eye(workers, dtype=torch.bool)
    disagreed = window.disagreed | ((agreement < files_per_pair) & off)
    low = workers - 1 - disagreed.sum(1) < workers - q - 1
    new = [worker for worker in low.nonzero().flatten().tolist() if worker not in window.flagged]
    flagged = (*window.flagged, *new)
    # Not [-q:]: with q = 0 that is everybody.
    return Window(window.iteration + 1, disagreed, flagged[max(0, len(flagged) - q) :])


def latency(
    assignment: Assignment,
    *,
    q: int,
    trials: int,
    length: int,
    permuted: bool = True,
    generator: torch.Generator,
) -> Tensor:
    """Simulate how many iterations pass until q random Byzantine workers are flagged (ATT-3).

    Returns (trials,) int64 in 1..length, or 0 where the window ended first. The Byzantine workers
    distort exactly the files in which they are the majority. ``permuted`` draws fresh worker labels
    in each iteration, as Aspis+ does; all files need the same number of copies.

    Reference
    ---------
    ToN 2023, ATT-3 against Aspis+.
    """
    check_byzantine(assignment.workers, q)
    workers, blocks = assignment.workers, assignment.holders
    draw = torch.rand(trials, workers, generator=generator)
    byzantine = torch.zeros(trials, workers, dtype=torch.bool)
    byzantine.scatter_(1, draw.argsort(1)[:, :q], True)
    disagreed = torch.zeros(trials, workers, workers, dtype=torch.bool)
    flagged = torch.zeros(trials, workers, dtype=torch.bool)
    done = torch.zeros(trials, dtype=torch.int64)
    for iteration in range(1, length + 1):
        names = torch.arange(workers).expand(trials, -1)
        if permuted:
            names = torch.rand(trials, workers, generator=generator).argsort(1)
        disagreed |= _majority_disagreements(names[:, blocks], byzantine)
        flagged |= workers - 1 - disagreed.sum(2) < workers - q - 1
        complete = (flagged | ~byzantine).all(1)
        # The first iteration only: flags stay, and later ones are complete as well.
        done[complete & (done == 0)] = iteration
    return done


def _majority_disagreements(blocks: Tensor, byzantine: Tensor) -> Tensor:
    """Return (trials, K, K): pairs split by a file that Byzantine workers own by majority."""
    trials, _, copies = blocks.shape
    distorting = byzantine.gather(1, blocks.reshape(trials, -1)).view_as(blocks)
    owned = 2 * distorting.sum(2) > copies
    split = owned[:, :, None, None] & (distorting[:, :, :, None] != distorting[:, :, None, :])
    trial, file, i, j = split.nonzero(as_tuple=True)
    result = torch.zeros(trials, *2 * byzantine.shape[1:], dtype=torch.bool)
    result[trial, blocks[trial, file, i], blocks[trial, file, j]] = True
    return result
