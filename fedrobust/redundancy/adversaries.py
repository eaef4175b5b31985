"""Whom the adversary corrupts and which copies it distorts, scheme by scheme.

Each function of ``ADVERSARIES`` returns a `Corruption`; what the Byzantine workers send is another
matter (see `fedrobust.attacks`). Workers count from 0 and the default Byzantine workers are the
lowest numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import MISSING
from fedrobust.redundancy.assignment import Assignment, check_byzantine
from fedrobust.redundancy.search import extreme_set
from fedrobust.redundancy.worst_case import detox_set
from fedrobust.seeds import generator
from fedrobust.spec import Spec, resolve


@dataclass(frozen=True)
class Corruption:
    """The Byzantine workers, and the copies they distort: ``distorted`` is bool (workers, files).

    ``colluding`` workers send the same wrong value for a file; others all differ.
    """

    adversaries: tuple[int, ...]
    distorted: Tensor
    colluding: bool = True


def corrupt(
    spec: Spec, assignment: Assignment, *, q: int, adversaries: Iterable[int] | None = None
) -> Corruption:
    """Choose Byzantine workers and distorted copies by a spec from ``ADVERSARIES``.

    Raises
    ------
    ValueError
        Unless q < K/2 and ``adversaries``, where given, are q distinct workers.
    """
    function, settings = resolve(ADVERSARIES, spec, kind="adversary", supplied=("q", "adversaries"))
    check_byzantine(assignment.workers, q)
    # A set first: one worker named twice would pass as two.
    chosen = None if adversaries is None else tuple(sorted(set(adversaries)))
    if chosen is not None and (
        len(chosen) != q or not set(chosen) <= set(range(assignment.workers))
    ):
        raise ValueError(f"adversaries must be {q} of {assignment.workers} workers, got {chosen}")
    return function(assignment, q=q, adversaries=chosen, **settings)


def att1(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """ATT-1 (weak): distort every file they hold, without collusion. ISIT 2022; ToN 2023."""
    byzantine = tuple(range(q)) if adversaries is None else adversaries
    return Corruption(byzantine, _rows(assignment, byzantine), colluding=False)


def att2(
    assignment: Assignment,
    *,
    q: int,
    adversaries: tuple[int, ...] | None = None,
    victims: tuple[int, ...] | None = None,
) -> Corruption:
    """ATT-2 (optimal against Aspis): distort files whose honest holders are all victims.

    The q victims D are the lowest honest workers by default. Needs 2q <= K. Degrees stay at
    K-q-1, and Byzantine workers with the honest outside D are as large a clique as the honest
    workers.

    Reference
    ---------
    ISIT 2022 and ToN 2023, optimal attack.
    """
    return _cornered(assignment, q, adversaries, victims, q)


def small_d(
    assignment: Assignment,
    *,
    q: int,
    adversaries: tuple[int, ...] | None = None,
    victims: tuple[int, ...] | None = None,
) -> Corruption:
    """ATT-2 with q-1 victims: the paper's clique rule then convicts the victims instead.

    An observation on the rule's text; it is in none of the papers.
    """
    return _cornered(assignment, q, adversaries, victims, max(q - 1, 0))


def _cornered(
    assignment: Assignment,
    q: int,
    adversaries: tuple[int, ...] | None,
    victims: tuple[int, ...] | None,
    size: int,
) -> Corruption:
    byzantine = tuple(range(q)) if adversaries is None else adversaries
    honest = [worker for worker in range(assignment.workers) if worker not in byzantine]
    chosen = tuple(honest[:size]) if victims is None else tuple(victims)
    if not set(chosen) <= set(honest):
        raise ValueError(f"the victims must be honest workers, got {chosen}")
    outside = [worker for worker in honest if worker not in chosen]
    # A copy of such a file would set its holder against an honest worker that is no victim.
    seen = assignment.matrix[outside].any(0)
    return Corruption(byzantine, _rows(assignment, byzantine) & ~seen)


def att3(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """ATT-3 (against Aspis+): distort exactly the files with a Byzantine majority. ToN 2023."""
    byzantine = tuple(range(q)) if adversaries is None else adversaries
    held = _rows(assignment, byzantine)
    return Corruption(byzantine, held & (2 * held.sum(0) > assignment.copies))


def lone_files(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """Distort only files that they hold alone: nobody disagrees, nobody can be flagged.

    An observation on the clique rule: with nobody flagged C(q, r) files are wrong.
    """
    return _cornered(assignment, q, adversaries, None, 0)


def detox_worst(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """A bare majority of one group after the other, all files distorted. ToN 2023."""
    return _everything(assignment, adversaries or detox_set(assignment, q=q, worst=True))


def detox_benign(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """One Byzantine worker per group, group by group in turn, all files distorted. ToN 2023."""
    return _everything(assignment, adversaries or detox_set(assignment, q=q, worst=False))


def whole_group(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """The first q workers, all files distorted: whole groups of DETOX (an option of its code)."""
    return _everything(assignment, adversaries or tuple(range(q)))


def worst_set(
    assignment: Assignment, *, q: int, adversaries: tuple[int, ...] | None = None
) -> Corruption:
    """The set of workers that owns the most files by majority, all files distorted.

    Reference: ByzShield, MLSys 2021, exhaustive search.
    """
    return _everything(assignment, adversaries or extreme_set(assignment, q=q)[1])


def _everything(assignment: Assignment, byzantine: tuple[int, ...]) -> Corruption:
    return Corruption(byzantine, _rows(assignment, byzantine))


def _rows(assignment: Assignment, byzantine: tuple[int, ...]) -> Tensor:
    rows = torch.zeros_like(assignment.matrix)
    rows[list(byzantine)] = assignment.matrix[list(byzantine)]
    return rows


ADVERSARIES = {
    "att1": att1,
    "att2": att2,
    "att3": att3,
    "detox_benign": detox_benign,
    "detox_worst": detox_worst,
    "lone_files": lone_files,
    "small_d": small_d,
    "whole_group": whole_group,
    "worst_set": worst_set,
}


def window_adversaries(
    workers: int, *, q: int, iteration: int, length: int, seed: int
) -> tuple[int, ...]:
    """Return the q Byzantine workers of an iteration (from 0), redrawn every ``length`` (T_b).

    Reference: ToN 2023, ATT-3 (T_b = 50).
    """
    check_byzantine(workers, q)
    if length < 1 or iteration < 0:
        raise ValueError(f"need length >= 1 and iteration >= 0, got {length} and {iteration}")
    source = generator(seed, "redundancy adversaries", round=iteration // length)
    return tuple(sorted(torch.randperm(workers, generator=source)[:q].tolist()))


def corrupted_labels(assignment: Assignment, corruption: Corruption) -> Tensor:
    """Return the label matrix that the server sees: 0 for the true value of a file.

    Wrong values are 1 for colluding workers and 1 + worker otherwise. See
    `fedrobust.redundancy.agreement`.
    """
    names = torch.arange(1, assignment.workers + 1)[:, None]
    # Beside 0, the true value: one label for all who collude, one each for the others.
    wrong = torch.ones_like(names) if corruption.colluding else names
    labels = torch.where(corruption.distorted, wrong, 0)
    return torch.where(assignment.matrix, labels, MISSING)
