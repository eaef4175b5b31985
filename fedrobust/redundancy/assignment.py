"""Who computes what: every file of a batch goes to several workers.

Schemes: Aspis (ISIT 2022; IEEE/ACM ToN 2023), Aspis+ (ToN 2023), ByzShield (MLSys 2021),
DETOX (NeurIPS 2019), DRACO (ICML 2018).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from fedrobust.redundancy.designs import two_design
from fedrobust.redundancy.galois import field, is_prime, prime_power
from fedrobust.spec import Spec, resolve


@dataclass(frozen=True)
class Assignment:
    """Which worker holds which file: ``matrix`` is bool (workers, files)."""

    matrix: Tensor

    @property
    def workers(self) -> int:
        """K, the number of workers."""
        return self.matrix.shape[0]

    @property
    def files(self) -> int:
        """f, the number of files of a batch."""
        return self.matrix.shape[1]

    @property
    def loads(self) -> tuple[int, ...]:
        """The number of files of each worker."""
        return tuple(self.matrix.sum(1).tolist())

    @property
    def load(self) -> int | tuple[int, ...]:
        """l, the files per worker: one number where all are equal, else a tuple per worker."""
        return self.loads[0] if len(set(self.loads)) == 1 else self.loads

    @property
    def copies(self) -> Tensor:
        """(files,) int: how many workers hold each file."""
        return self.matrix.sum(0)

    @property
    def pair_counts(self) -> Tensor:
        """(K, K) int64: the files each pair of workers shares; a worker's load on the diagonal."""
        # Exact for counts below 2^53, and far faster than a product of integers.
        rows = self.matrix.double()
        return (rows @ rows.T).round().long()

    @property
    def holders(self) -> Tensor:
        """(files, most copies) int64: the workers of each file in order, -1 where there are fewer.

        Example: ``assign("aspis", workers=5, replication=3).holders[0]`` is ``[0, 1, 2]``.
        """
        # False sorts first: those that hold the file, in their order.
        order = torch.sort(~self.matrix, dim=0, stable=True).indices.T
        place = torch.arange(self.workers)
        order = torch.where(place < self.copies[:, None], order, -1)
        return order[:, : int(self.copies.max())]


def permute(assignment: Assignment, generator: torch.Generator) -> Assignment:
    """Give the workers fresh random labels: the rows change places, the design stays.

    Reference: Aspis+ (ToN 2023) draws one permutation in every iteration.
    """
    order = torch.randperm(assignment.workers, generator=generator, device=generator.device)
    return Assignment(assignment.matrix[order.to(assignment.matrix.device)])


def from_blocks(blocks: list[tuple[int, ...]], workers: int) -> Assignment:
    """Return the assignment whose file j is held by the workers in ``blocks[j]``."""
    matrix = torch.zeros(workers, len(blocks), dtype=torch.bool)
    sizes = torch.tensor([len(block) for block in blocks])
    columns = torch.repeat_interleave(torch.arange(len(blocks)), sizes)
    matrix[torch.tensor(list(itertools.chain.from_iterable(blocks))), columns] = True
    return Assignment(matrix)


def aspis(*, workers: int, replication: int) -> Assignment:
    """One file per r-subset of the workers, in lexicographic order: f = C(K, r).

    Raises
    ------
    ValueError
        If the matrix would take more than a gigabyte.

    Reference: ISIT 2022 and ToN 2023, task assignment of Aspis.
    """
    files = comb(workers, replication)
    if files * workers > 2**30:
        raise ValueError(
            f"aspis with {workers} workers and replication {replication} has {files} files,"
            " too many to list"
        )
    return from_blocks(list(itertools.combinations(range(workers), replication)), workers)


def aspis_plus(*, workers: int, replication: int) -> Assignment:
    """One file per block of a 2-design on the workers; see `fedrobust.redundancy.designs`."""
    return from_blocks(two_design(workers, replication), workers)


def byzshield_mols(*, workers: int, replication: int) -> Assignment:
    """R mutually orthogonal Latin squares of order l = K/r: f = l^2 files, l per worker.

    Worker ``a * l + s`` (a = 0..r-1) gets file ``i * l + j`` where ``(a+1) * i + j = s`` in GF(l).

    Raises
    ------
    ValueError
        If r does not divide K, l is no prime power, or r > l - 1.

    Reference: ByzShield, MLSys 2021, assignment by Latin squares (Table 2).
    """
    size, remainder = divmod(workers, replication)
    if remainder or prime_power(size) is None or replication > size - 1:
        raise ValueError(
            "byzshield_mols needs workers = r * l with l a prime power and r <= l - 1,"
            f" got workers={workers}, replication={replication}"
        )
    gf = field(size)
    # Slopes 1 .. r, none of them 0: lines of different slopes meet in exactly one file.
    squares = [gf.add[gf.multiply[a + 1]].reshape(-1) for a in range(replication)]
    return Assignment(torch.cat([torch.arange(size)[:, None] == square for square in squares]))


def byzshield_ramanujan(*, workers: int, replication: int, m: int | None = None) -> Assignment:
    """Bipartite Ramanujan graph from powers of a cyclic shift P of prime size s.

    B has s x m blocks, block (i, j) = P^(i j). Case 1, K = m s with m = r < s: the transpose of
    B, s^2 files. Case 2, K = r^2 with s = r: B itself, m s files, ``m`` a multiple of s.

    Raises
    ------
    ValueError
        If K and r fit neither case, or s is not prime.

    Reference: ByzShield, MLSys 2021, assignment by Ramanujan graphs.
    """
    if workers == replication**2:
        return Assignment(_shifts(replication, replication if m is None else m, case=2))
    size, remainder = divmod(workers, replication)
    if m is not None or remainder or size <= replication:
        raise ValueError(
            "byzshield_ramanujan needs workers = r * s with s > r (case 1, without m) or"
            f" workers = r^2 (case 2), got workers={workers}, replication={replication}, m={m}"
        )
    return Assignment(_shifts(size, replication, case=1))


def _shifts(size: int, count: int, *, case: int) -> Tensor:
    if not is_prime(size):
        raise ValueError(f"byzshield_ramanujan needs a prime s, got s={size}")
    if case == 2 and (count < size or count % size):
        raise ValueError(f"byzshield_ramanujan needs m to be a multiple of s={size}, got m={count}")
    unit = torch.eye(size, dtype=torch.bool)
    rows = [torch.cat([unit.roll(i * j, 1) for j in range(count)], 1) for i in range(size)]
    matrix = torch.cat(rows)
    return matrix.T.contiguous() if case == 1 else matrix


def detox(*, workers: int, replication: int) -> Assignment:
    """Groups of r consecutive workers, one file each; the last group takes the remainder.

    There are floor(K / r) groups. Reference: DETOX, NeurIPS 2019; the remainder rule is that of the
    authors' code (K=25, r=3: eight groups, the last of four).
    """
    groups = workers // replication
    # Clamped: the workers beyond the last full group join it.
    owner = torch.clamp(torch.arange(workers) // replication, max=groups - 1)
    return Assignment(owner[:, None] == torch.arange(groups))


def draco_cyclic(*, workers: int, replication: int) -> Assignment:
    """N tasks for n workers; worker i holds the r = 2s+1 consecutive tasks from i on, cyclically.

    Reference: DRACO, ICML 2018, cyclic code.
    """
    offset = (torch.arange(workers) - torch.arange(workers)[:, None]) % workers
    return Assignment(offset < replication)


def none(*, workers: int, replication: int) -> Assignment:
    """No redundancy: every worker has one file of its own; the replication has no meaning here."""
    return Assignment(torch.eye(workers, dtype=torch.bool))


SCHEMES = {
    "aspis": aspis,
    "aspis_plus": aspis_plus,
    "byzshield_mols": byzshield_mols,
    "byzshield_ramanujan": byzshield_ramanujan,
    "detox": detox,
    "draco_repetition": detox,
    "draco_cyclic": draco_cyclic,
    "none": none,
}


def assign(spec: Spec, *, workers: int, replication: int) -> Assignment:
    """Assign the files of a batch to the workers.

    Parameters
    ----------
    spec
        A name in ``SCHEMES``, or ``{"name": ..., **parameters}``.
    workers, replication
        K and r: r odd, 1 <= r <= K. The scheme "none" ignores r.

    Raises
    ------
    ValueError
        If r is even or out of range, or K and r do not fit the scheme.
    """
    scheme, settings = resolve(SCHEMES, spec, kind="scheme", supplied=("workers", "replication"))
    if workers < 1:
        raise ValueError(f"a scheme needs at least one worker, got {workers}")
    if scheme is not none:
        check_replication(workers, replication)
    return scheme(workers=workers, replication=replication, **settings)


def check_replication(workers: int, replication: int) -> None:
    """Raise a ValueError unless r is odd and 1 <= r <= K."""
    if replication < 1 or replication % 2 == 0:
        raise ValueError(f"replication must be odd and positive, got {replication}")
    if replication > workers:
        raise ValueError(f"replication={replication} needs as many workers, got {workers}")


def check_byzantine(workers: int, q: int) -> None:
    """Raise a ValueError unless 0 <= q < K/2."""
    if not q >= 0 or 2 * q >= workers:
        raise ValueError(f"q must be less than half of {workers} workers and not negative, got {q}")


def check_batch(batch: int, assignment: Assignment) -> int:
    """Return the samples per file: the batch is a multiple of the files, with two samples each.

    Raises
    ------
    ValueError
        Otherwise (batch normalisation needs two samples in a file).
    """
    if batch % assignment.files or batch < 2 * assignment.files:
        raise ValueError(
            f"the batch must be a multiple of {assignment.files} files with at least 2 samples"
            f" each, got {batch}"
        )
    return batch // assignment.files
