"""One value per file: a verified majority, or any member of the honest clique."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import MISSING, cluster, compact, exact, relative_distances
from fedrobust.redundancy.detection import Detection

POLICIES = ("drop", "medoid")
SECOND_STAGE = {"krum": (2, 3), "multi_krum": (2, 3), "bulyan": (4, 3)}


@dataclass(frozen=True)
class Vote:
    """Outcome of a vote over the copies of one file.

    ``value`` is (d,), or None where the file is dropped; ``row`` is the copy it was taken from, and
    ``votes`` how many copies agree with it. ``majority``: they are more than half.
    """

    value: Tensor | None
    row: int | None
    votes: int
    majority: bool


def majority(labels: Tensor, *, copies: Tensor | None = None) -> Tensor:
    """Return the label that more than half of each file's copies carry, or ``MISSING``.

    ``labels`` is (workers, files); the result (files,). Boyer-Moore in two passes: the second one
    counts, so that a file without a majority never yields an arbitrary value. ``copies`` (files,)
    says how many were assigned: a copy that did not come is then a vote for nobody, so that one
    copy of three is no majority. By default those that came are counted.
    """
    _, values = compact(labels)
    candidate = torch.full((labels.shape[1],), MISSING)
    lead = torch.zeros_like(candidate)
    for column in values.T:
        present, fresh = column != MISSING, lead == 0
        candidate = torch.where(present & fresh, column, candidate)
        lead = lead + torch.where(column == candidate, 1, -1) * present
    votes = (values == candidate[:, None]).sum(1)
    verified = 2 * votes > ((values != MISSING).sum(1) if copies is None else copies)
    # Where nothing came the candidate is MISSING, which the padding would vote for.
    return torch.where(verified & (candidate != MISSING), candidate, MISSING)


def representatives(
    labels: Tensor, *, honest: Iterable[int] | None = None, copies: Tensor | None = None
) -> Tensor:
    """Choose for each file a worker whose copy stands for it, or -1 to drop the file: (files,).

    With ``honest`` (the accepted clique) it is the first of them that returned the file; otherwise
    the first worker of the verified majority (of ``copies``, see `majority`).

    Reference: ToN 2023, aggregation shared by Aspis and Aspis+.
    """
    if honest is None:
        winner = majority(labels, copies=copies)
        fit = (labels == winner) & (labels != MISSING)
    else:
        fit = torch.zeros_like(labels, dtype=torch.bool)
        chosen = sorted(honest)
        fit[chosen] = labels[chosen] != MISSING
    # argmax gives the first of equals, and takes no bool.
    return torch.where(fit.any(0), fit.byte().argmax(0), -1)


def without(labels: Tensor, byzantine: Iterable[int]) -> Tensor:
    """Return the labels with the flagged workers' copies missing, as Aspis+ ignores them."""
    kept = labels.clone()
    kept[sorted(byzantine)] = MISSING
    return kept


def choose(labels: Tensor, detection: Detection, *, copies: Tensor | None = None) -> Tensor:
    """Choose the workers that stand for the files after a detection: (files,), -1 drops the file.

    Accepted: any member of the clique. Otherwise the verified majority of all copies.
    """
    honest = detection.honest if detection.accepted else None
    return representatives(labels, honest=honest, copies=copies)


def vote(stack: Tensor, *, policy: str = "drop", tolerance: float | None = None) -> Vote:
    """Vote over the copies (r, d) of one file.

    ``tolerance=None`` compares bit by bit, a number by relative L2 distance (< 1). Without a
    majority the policy decides: "drop" the file, or take the "medoid", the copy with the smallest
    sum of relative distances to the others.

    Raises
    ------
    ValueError
        For no copies, an unknown policy or a tolerance of 1 or more.
    """
    if len(stack) == 0:
        raise ValueError("a vote needs at least one copy, got 0")
    if policy not in POLICIES:
        raise ValueError(f"unknown tie policy {policy!r}; choose from {', '.join(POLICIES)}")
    labels = exact(stack) if tolerance is None else cluster(stack, tolerance=tolerance)
    winner = int(majority(labels[:, None]))
    if winner != MISSING:
        members = (labels == winner).nonzero().flatten()
        # Within a tolerance the members differ: the most central one stands for them.
        row = int(members[_medoid(stack[members])])
        return Vote(stack[row].clone(), row, len(members), True)
    if policy == "drop" or not torch.isfinite(stack).flatten(1).all(1).any():
        return Vote(None, None, 0, False)
    row = _medoid(stack)
    return Vote(stack[row].clone(), row, int((labels == labels[row]).sum()), False)


def _medoid(stack: Tensor) -> int:
    """Return the row nearest to the others, by the sum of distances capped at the largest of 2."""
    distances = relative_distances(stack)
    unusable = ~torch.isfinite(distances.diagonal())
    # 2 is the most that finite vectors differ by: an infinite one must not make every sum infinite.
    sums = distances.clamp(max=2.0).sum(1)
    return int(torch.where(unusable, torch.inf, sums).argmin())


def second_stage_minimum(rule: str, *, distorted: int) -> int:
    """Return how many voted values a rule needs when c of them may be wrong.

    Krum and Multi-Krum: 2c + 3; Bulyan: 4c + 3; any other rule: 2c + 1, a bare majority.

    Reference: ToN 2023 and ByzShield (the cells that the papers leave empty).
    """
    factor, constant = SECOND_STAGE.get(rule, (2, 1))
    return factor * distorted + constant


def bucket_count(rule: str, *, files: int, wrong: int | None) -> int:
    """Return how many buckets of files a rule needs, at most one a file.

    Each wrong file spoils one bucket at most: with 2c+1 of them the true ones are a majority,
    whichever files they hold. Rules of the Krum family need more. ``wrong`` None: all may be.
    """
    distorted = files if wrong is None else wrong
    return min(files, second_stage_minimum(rule, distorted=distorted))


def check_second_stage(rule: str, *, operands: int, distorted: int) -> None:
    """Raise a ValueError if a rule cannot bear c wrong values among N."""
    least = second_stage_minimum(rule, distorted=distorted)
    if operands < least:
        raise ValueError(
            f"{rule} with {distorted} wrong values needs at least {least} operands, got {operands}"
        )
