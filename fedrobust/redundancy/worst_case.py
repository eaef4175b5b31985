"""How many files of a batch q Byzantine workers can spoil: closed forms, and exact search."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch

from fedrobust.redundancy.assignment import (
    SCHEMES,
    Assignment,
    assign,
    check_byzantine,
    check_replication,
)
from fedrobust.redundancy.search import NotApplicable, extreme_set
from fedrobust.spec import Spec, resolve, split


@dataclass(frozen=True)
class Distortion:
    """What q Byzantine workers spoil: ``count`` (c) of ``files`` (f), and epsilon as ``fraction``.

    ``byzantine`` is a set of workers that does it.
    """

    count: int
    fraction: float
    files: int
    byzantine: tuple[int, ...]


def distortion(
    spec: Spec, *, workers: int, replication: int, q: int, attack: str = "optimal"
) -> Distortion:
    """Count the files whose value is wrong after detection and voting.

    ``attack="optimal"`` is the worst case: ATT-2 for Aspis, the worst set of workers for the vote
    of Aspis+ (one iteration, no detection yet), ByzShield and DETOX. ``"weak"`` is ATT-1 for Aspis
    (files without an honest copy), the benign round-robin choice for DETOX, and the least harmful
    set of workers for Aspis+ and ByzShield (an interpretation: the papers study no weak attack
    there). DRACO decodes exactly; "none" loses q of K files.

    For DETOX the fraction is the papers' closed form in K/r even where r does not divide K; the
    count is then that of the real groups, the last of which takes the remainder.

    Raises
    ------
    ValueError
        Unless q < K/2, r is odd and K and r fit the scheme; for an unknown attack.
    NotApplicable
        (a ValueError) For DRACO with r < 2q+1, and where the exact search is out of reach.

    Reference
    ---------
    ToN 2023, Theorem 1 and distortion analysis; ByzShield, MLSys 2021, Tables 3 and 4.
    """
    resolve(SCHEMES, spec, kind="scheme", supplied=("workers", "replication"))
    name, settings = split(spec)
    if attack not in ("optimal", "weak"):
        raise ValueError(f"unknown attack {attack!r}; choose from optimal, weak")
    check_byzantine(workers, q)
    # Closed forms: C(K, r) files may be too many to list.
    if name == "aspis":
        check_replication(workers, replication)
        return _aspis(workers, replication, q, attack)
    if name == "none":
        return Distortion(q, q / workers, workers, tuple(range(q)))
    assignment = assign({"name": name, **settings}, workers=workers, replication=replication)
    if name.startswith("draco"):
        return _draco(assignment, replication, q)
    if name == "detox":
        return _detox(assignment, replication, q, attack)
    count, byzantine = extreme_set(assignment, q=q, least=attack == "weak")
    return Distortion(count, count / assignment.files, assignment.files, byzantine)


def att2_count(*, q: int, replication: int) -> int:
    """c_max of Aspis, C(2q, r) / 2 (0 below q = (r+1)/2): ToN 2023, Theorem 1.

    The bound holds for the strict clique rule; see `small_d_count` for the paper's own rule.
    """
    half = (replication + 1) // 2
    return sum(comb(q, j) * comb(q, replication - j) for j in range(half, replication + 1))


def small_d_count(*, q: int, replication: int) -> int:
    """Files spoiled under the paper's rule by disagreement with q - 1 honest workers only.

    The unique maximum clique then holds every Byzantine worker: C(2q-1, r) - C(q-1, r) files enter
    the plain mean with a wrong value. An observation on the rule's text; it is in none of the
    papers.
    """
    return comb(2 * q - 1, replication) - comb(q - 1, replication)


def _aspis(workers: int, replication: int, q: int, attack: str) -> Distortion:
    files = comb(workers, replication)
    weak = attack == "weak"
    count = comb(q, replication) if weak else att2_count(q=q, replication=replication)
    return Distortion(count, count / files, files, tuple(range(q)))


def _draco(assignment: Assignment, replication: int, q: int) -> Distortion:
    if replication < 2 * q + 1:
        raise NotApplicable(f"draco with q={q} needs replication {2 * q + 1}, got {replication}")
    return Distortion(0, 0.0, assignment.files, tuple(range(q)))


def _detox(assignment: Assignment, replication: int, q: int, attack: str) -> Distortion:
    byzantine = detox_set(assignment, q=q, worst=attack == "optimal")
    held = assignment.matrix[list(byzantine)].sum(0)
    count = int((2 * held > assignment.copies).sum())
    half, groups = (replication + 1) // 2, assignment.workers / replication
    lost = q // half if attack == "optimal" else max(q - groups * (half - 1), 0.0)
    return Distortion(count, lost / groups, assignment.files, byzantine)


def detox_set(assignment: Assignment, *, q: int, worst: bool) -> tuple[int, ...]:
    """Choose q workers of disjoint groups: a bare majority group by group, or one by one in turn.

    ``worst`` takes the cheapest groups first; what is left over goes to the next group.
    Reference: ToN 2023, worst and benign choice for DETOX / FRC.
    """
    groups = [row.nonzero().flatten().tolist() for row in assignment.matrix.T]
    if worst:
        groups.sort(key=len)
        # First a bare majority of every group: more in one that has fallen would be wasted.
        heads = [worker for group in groups for worker in group[: len(group) // 2 + 1]]
        tails = [worker for group in groups for worker in group[len(group) // 2 + 1 :]]
        return tuple(sorted((heads + tails)[:q]))
    turns = range(max(map(len, groups)))
    return tuple(sorted([g[turn] for turn in turns for g in groups if turn < len(g)][:q]))


def second_eigenvalue(assignment: Assignment) -> float:
    """mu_1: second eigenvalue of A A^T for the biadjacency A normalised by the root degrees.

    1/r for Latin squares and both Ramanujan cases. Reference: ByzShield, MLSys 2021.
    """
    matrix = assignment.matrix.double()
    scale = torch.tensor(assignment.loads).double().rsqrt()
    normal = scale[:, None] * matrix * assignment.copies.double().rsqrt()
    # In falling order: the first is 1, for any assignment.
    return float(torch.linalg.svdvals(normal)[1] ** 2)


def gamma_bound(spec: Spec, *, workers: int, replication: int, q: int) -> float:
    """Upper bound gamma of the files that q workers can spoil, from the graph's expansion.

    beta = (q l / r) / (mu_1 + (1 - mu_1) q / K) files are touched at least, and
    gamma = (q l - beta) / ((r - 1) / 2). Needs r > 1 and the same load on every worker.

    Reference: ByzShield, MLSys 2021, upper bound on the distortion.
    """
    assignment = assign(spec, workers=workers, replication=replication)
    check_byzantine(workers, q)
    copies = set(assignment.copies.tolist())
    if isinstance(assignment.load, tuple) or len(copies) != 1 or copies == {1}:
        raise NotApplicable("gamma needs equal loads and the same number of copies, above one")
    mu = second_eigenvalue(assignment)
    total = q * assignment.load
    beta = total / replication / (mu + (1 - mu) * q / workers)
    return (total - beta) / ((replication - 1) / 2)


def majority_bound(assignment: Assignment, *, q: int) -> int:
    """Lambda C(q, 2): the most files of a triple design that q workers can own by majority.

    Reference: ToN 2023, Aspis+ (every pair of Byzantine workers in a block of its own).
    """
    off = assignment.pair_counts[~torch.eye(assignment.workers, dtype=torch.bool)]
    return int(off.max()) * comb(q, 2)


def random_fraction(assignment: Assignment, *, q: int) -> float:
    """Mean share of files with a Byzantine majority when the q workers are drawn at random."""
    workers, total = assignment.workers, comb(assignment.workers, q)
    share = 0.0
    for copies in assignment.copies.tolist():
        ways = (
            comb(copies, j) * comb(workers - copies, q - j)
            for j in range(copies // 2 + 1, min(copies, q) + 1)
        )
        share += sum(ways) / total
    return share / assignment.files
