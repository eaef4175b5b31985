"""Block designs: the files of Aspis+ are the blocks, its workers the points.

Every function returns blocks as sorted tuples of points 0..K-1. A 2-(K, r, lambda) design puts
each pair of points into exactly lambda blocks of r points.
"""

from __future__ import annotations

import itertools

from fedrobust.redundancy.galois import field, prime_power

Blocks = list[tuple[int, ...]]


def two_design(workers: int, replication: int) -> Blocks:
    """Return a 2-design with the given points and block size.

    Block size 3: a Steiner triple system where K = 1 or 3 mod 6 (lambda = 1), a twofold triple
    system where K = 4 mod 6 (lambda = 2; K=16 gives the 80 blocks of the paper). Larger blocks: the
    affine plane (K = r^2) and the projective plane (K = r^2 - r + 1) over a finite field.

    Raises
    ------
    ValueError
        If none of these constructions fits.

    Reference
    ---------
    Konstantinidis et al., IEEE/ACM ToN 2023 (Aspis+), assignment by 2-designs.
    """
    if replication == 3:
        if workers % 6 == 3:
            return bose(workers)
        if workers % 6 == 1 and workers > 1:
            return skolem(workers)
        if workers % 6 == 4 and workers > 4:
            return twofold(workers)
        raise ValueError(
            "aspis_plus with replication 3 needs workers = 1 or 3 mod 6 (a Steiner triple system)"
            f" or 4 mod 6 (lambda 2), got {workers}"
        )
    if workers == replication**2 and prime_power(replication):
        return affine_plane(replication)
    if workers == replication**2 - replication + 1 and prime_power(replication - 1):
        return projective_plane(replication - 1)
    raise ValueError(
        f"aspis_plus with replication {replication} needs r^2 workers (r a prime power) or"
        f" r^2 - r + 1 workers (r - 1 a prime power), got {workers}"
    )


def _triples(order: int, product: list[list[int]]) -> Blocks:
    """{(x,i), (y,i), (x*y, i+1)} for x < y and i = 0, 1, 2; (x, i) is the point x + i * order."""
    return [
        (x + i * order, y + i * order, product[x][y] + (i + 1) % 3 * order)
        for x, y in itertools.combinations(range(order), 2)
        for i in range(3)
    ]


def _columns(order: int, count: int) -> Blocks:
    return [(x, x + order, x + 2 * order) for x in range(count)]


def _sorted(blocks: Blocks) -> Blocks:
    # One order: a file's number must be the same for the server and every worker.
    return sorted(tuple(sorted(block)) for block in blocks)


def bose(points: int) -> Blocks:
    """Bose's Steiner triple system on 6t+3 points, from the idempotent x*y = (x+y)/2 mod 2t+1."""
    n = points // 3
    # n is odd, so that (n + 1) / 2 is the inverse of 2 modulo n.
    product = [[(x + y) * (n + 1) // 2 % n for y in range(n)] for x in range(n)]
    return _sorted(_columns(n, n) + _triples(n, product))


def skolem(points: int) -> Blocks:
    """Skolem's Steiner triple system on 6t+1 points, from a half-idempotent product mod 2t."""
    n = points // 3
    half = n // 2
    product = [[((x + y) % n) // 2 + (x + y) % 2 * half for y in range(n)] for x in range(n)]
    spokes: Blocks = [
        (points - 1, x + half + i * n, x + (i + 1) % 3 * n) for x in range(half) for i in range(3)
    ]
    return _sorted(_columns(n, half) + spokes + _triples(n, product))


def twofold(points: int) -> Blocks:
    """A twofold triple system on 3n+1 points, n odd: every pair of points in two blocks.

    Uses the idempotent product x*y = 2x - y where 3 does not divide n, which gives distinct blocks,
    and (x+y)/2 otherwise, which repeats some.
    """
    n = points // 3
    a = 2 if n % 3 else (n + 1) // 2
    spokes: Blocks = [
        (points - 1, x + i * n, x + (i + 1) % 3 * n) for x in range(n) for i in range(3)
    ]
    ordered: Blocks = [
        (x + i * n, y + i * n, (a * x + (1 - a) * y) % n + (i + 1) % 3 * n)
        for x, y in itertools.permutations(range(n), 2)
        for i in range(3)
    ]
    return _sorted(_columns(n, n) + spokes + ordered)


def affine_plane(order: int) -> Blocks:
    """The lines of AG(2, order): order^2 points, order^2 + order lines."""
    gf = field(order)
    lines: Blocks = [
        tuple(x * order + int(gf.add[gf.multiply[slope, x], cut]) for x in range(order))
        for slope in range(order)
        for cut in range(order)
    ]
    upright = [tuple(range(x * order, (x + 1) * order)) for x in range(order)]
    return _sorted([*lines, *upright])


def projective_plane(order: int) -> Blocks:
    """The lines of PG(2, order): the affine lines, each with the point at infinity of its slope."""
    infinity = order**2
    gf = field(order)
    lines: Blocks = [
        (*(x * order + int(gf.add[gf.multiply[slope, x], cut]) for x in range(order)),
         infinity + slope)
        for slope in range(order)
        for cut in range(order)
    ]  # fmt: skip
    upright = [(*range(x * order, (x + 1) * order), infinity + order) for x in range(order)]
    return _sorted([*lines, *upright, tuple(range(infinity, infinity + order + 1))])
