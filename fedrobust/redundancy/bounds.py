"""How many files can be wrong in a round, given who was heard."""

from __future__ import annotations

from collections.abc import Collection
from math import comb

import torch
from torch import Tensor

from fedrobust.redundancy.assignment import Assignment
from fedrobust.redundancy.search import NotApplicable, extreme_set

NODES = 1_000_000  # about a tenth of a second
VOTE, CORNERED, WHOLLY = "vote", "cornered", "wholly"


def wrong_bound(
    assignment: Assignment,
    *,
    q: int,
    kind: str,
    heard: Collection[int] | None = None,
    subsets: bool = False,
) -> int | None:
    """Return the most files that q Byzantine workers can make wrong; None where out of reach.

    Parameters
    ----------
    assignment
        Who was asked for which file.
    kind
        "vote": a file falls with more than half of its assigned copies. "cornered": the same, and
        no honest worker that was heard sees more than q Byzantine ones disagree (the strict clique
        rule's fallback, ATT-2). "wholly": a file falls only where no honest worker that was heard
        holds it, and more than half of its copies came.
    heard
        The workers that answered; all by default. Who is absent votes for nobody, but no longer
        contradicts either: the files of ``x`` absent workers are easier to corner.
    subsets
        Whether the assignment is that of Aspis, for which closed forms exist.

    Raises
    ------
    ValueError
        For another ``kind``.

    Reference
    ---------
    ToN 2023, Theorem 1 (with everybody heard, ``cornered`` is its C(2q, r) / 2); the forms with
    absent workers are ours, by the same count.
    """
    if kind not in (VOTE, CORNERED, WHOLLY):
        raise ValueError(f"unknown bound {kind!r}; choose from {VOTE}, {CORNERED}, {WHOLLY}")
    present = sorted(range(assignment.workers) if heard is None else heard)
    if subsets:
        return _subsets(assignment, q, kind, assignment.workers - len(present))
    rows = assignment.matrix[present]
    held, needed = rows.sum(0), assignment.copies // 2 + 1
    if kind == WHOLLY:
        # All that came: one honest holder among them would give the file away.
        needed = torch.maximum(needed, held)
    try:
        # A file of which fewer copies came than it takes cannot fall: the search leaves it out.
        return _search(rows[:, held >= needed], needed[held >= needed], min(q, len(present)))
    except NotApplicable:
        return None


def _subsets(assignment: Assignment, q: int, kind: str, absent: int) -> int:
    """Count r-subsets of the workers: j of them Byzantine, the others who may not contradict."""
    workers, r = assignment.workers, int(assignment.copies.max())
    half = r // 2 + 1
    others = {VOTE: workers - q, CORNERED: min(q + absent, workers - q), WHOLLY: absent}[kind]
    return sum(comb(q, j) * comb(others, r - j) for j in range(half, r + 1))


def _search(rows: Tensor, needed: Tensor, q: int) -> int:
    if not rows.shape[1] or not q:
        return 0
    return extreme_set(Assignment(rows), q=q, nodes=NODES, needed=needed)[0]
