"""Products of all pairs of rows of a float32 matrix on the CPU, compiled, in one read of it.

A strip of columns is centred into the cache and its rows are multiplied there, four by four, so
that sixteen sums stay in registers. Only the upper half is computed. The same read finds each row's
largest magnitude, and with it the rows that are not finite. Means of groups of rows are formed in
the strip, too, and never exist as a matrix.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.threads import in_parts

WIDE = 512  # columns of a strip: 20 rows fit the first-level cache, 500 the second
TILE = 4  # rows on either side of a tile
MOST_CHUNKS = 16  # each has sums of its own, so that the bits do not depend on the threads
SHARE = 20  # all chunks' sums together take at most a tenth of the matrix's memory


def gram(
    updates: Tensor, *, three: tuple[int, int, int] | None = None, centre: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the products (n, n) float64 of the rows about a centre, and each largest magnitude.

    Products of 512 columns are summed in float32, in lanes; these sums in float64.

    Parameters
    ----------
    updates
        See ``kernels.fits``.
    three
        Three rows whose coordinate-wise median is the centre.
    centre
        Or the centre itself (d,); the origin where neither is given.

    Returns
    -------
    The products, and (n,) float32 magnitudes of the rows as given: infinity or NaN where a row
    holds a value that is not finite, whose products mean nothing then.
    """
    matrix = updates.detach().numpy()
    n = len(matrix)
    sums = _sums(n, matrix.shape[1])
    chunks = len(sums)
    largest = np.zeros((chunks, n), dtype=np.uint32)
    rows = np.array(() if three is None else three, dtype=np.int64)
    point = np.zeros(0, dtype=np.float32) if centre is None else centre.detach().numpy()
    in_parts(
        _gram, matrix, point, rows, sums, largest, parts=chunks, work=matrix.size * (1 + n // 8)
    )
    return _whole(sums, n), torch.from_numpy(largest.max(0).view(np.float32))


def mixed_gram(updates: Tensor, mixing: Tensor, *, three: tuple[int, int, int]) -> Tensor:
    """Return the products (m, m) of ``mixing @ updates`` about a centre, as ``gram`` does.

    Parameters
    ----------
    mixing
        (m, n); what is zero costs nothing.
    three
        Three of the mixed rows.
    """
    matrix = updates.detach().numpy()
    m = len(mixing)
    sums = _sums(m, matrix.shape[1])
    target, source = mixing.nonzero(as_tuple=True)
    weights = mixing[target, source].to(updates).numpy()
    work = matrix.size * (1 + m // 8)
    given = (target.numpy(), source.numpy(), weights, np.array(three, dtype=np.int64))
    in_parts(_mixed_gram, matrix, *given, sums, parts=len(sums), work=work)
    return _whole(sums, m)


def _sums(n: int, d: int) -> np.ndarray:
    """Return room for each chunk's products."""
    chunks = max(1, min(MOST_CHUNKS, d // (SHARE * n), -(-d // WIDE)))
    padded = -(-n // TILE) * TILE
    return np.zeros((chunks, padded, padded))


def _whole(sums: np.ndarray, n: int) -> Tensor:
    """Add the chunks up, and fill in the lower half."""
    upper = torch.from_numpy(sums.sum(0)[:n, :n]).triu()
    return upper + upper.triu(1).T


@numba.njit(nogil=True, cache=True)
def _gram(
    x: np.ndarray,
    centre: np.ndarray,
    three: np.ndarray,
    sums: np.ndarray,
    largest: np.ndarray,
    first_chunk: int,
    last_chunk: int,
) -> None:  # pragma: no cover - compiled
    d, (chunks, padded, _) = x.shape[1], sums.shape
    strips = -(-d // WIDE)
    strip = np.zeros(padded * WIDE, dtype=np.float32)
    middle = np.zeros(WIDE, dtype=np.float32)
    for c in range(first_chunk, last_chunk):
        for b in range(strips * c // chunks, strips * (c + 1) // chunks):
            width = min(WIDE, d - b * WIDE)
            if width < WIDE:
                strip[:] = 0
            _centre(x, centre, three, b * WIDE, width, middle)
            _load(x, b * WIDE, width, middle, strip, largest[c])
            _multiply(strip, padded, sums[c])


@numba.njit(nogil=True, cache=True)
def _mixed_gram(
    x: np.ndarray,
    target: np.ndarray,
    source: np.ndarray,
    weights: np.ndarray,
    three: np.ndarray,
    sums: np.ndarray,
    first_chunk: int,
    last_chunk: int,
) -> None:  # pragma: no cover - compiled
    d, (chunks, padded, _) = x.shape[1], sums.shape
    strips, used = -(-d // WIDE), target[-1] + 1
    strip = np.zeros(padded * WIDE, dtype=np.float32)
    middle = np.zeros(WIDE, dtype=np.float32)
    for c in range(first_chunk, last_chunk):
        for b in range(strips * c // chunks, strips * (c + 1) // chunks):
            width = min(WIDE, d - b * WIDE)
            strip[:] = 0
            _mix(x, b * WIDE, width, target, source, weights, strip)
            _centre(strip.reshape(padded, WIDE), middle[:0], three, 0, width, middle)
            for i in range(used):
                for k in range(np.uint64(width)):
                    strip[np.uint64(i * WIDE) + k] -= middle[k]
            _multiply(strip, padded, sums[c])


@numba.njit(nogil=True, cache=True)
def _mix(
    x: np.ndarray,
    start: int,
    width: int,
    target: np.ndarray,
    source: np.ndarray,
    weights: np.ndarray,
    strip: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Add each row of some columns, times its weight, to the mixed row that it belongs to."""
    at = np.uint64(start)
    for entry in range(len(target)):
        to, row, weight = np.uint64(target[entry] * WIDE), source[entry], weights[entry]
        for k in range(np.uint64(width)):
            strip[to + k] += weight * x[row, at + k]


@numba.njit(nogil=True, cache=True)
def _multiply(strip: np.ndarray, padded: int, sums: np.ndarray) -> None:  # pragma: no cover
    """Add the products of all pairs of a strip's rows, the upper half in tiles."""
    for i in range(0, padded, TILE):
        for j in range(i, padded, TILE):
            _tile(strip, i, j, sums)


@numba.njit(nogil=True, cache=True)
def _centre(
    x: np.ndarray, centre: np.ndarray, three: np.ndarray, start: int, width: int, middle: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Write the centre's values in a strip: given, or the median of three rows, or zeros."""
    at = np.uint64(start)
    if len(centre):
        for k in range(np.uint64(width)):
            middle[k] = centre[at + k]
    elif len(three):
        first, second, third = three[0], three[1], three[2]
        for k in range(np.uint64(width)):
            p, q, r = x[first, at + k], x[second, at + k], x[third, at + k]
            middle[k] = max(min(p, q), min(max(p, q), r))


@numba.njit(nogil=True, cache=True)
def _load(
    x: np.ndarray, start: int, width: int, middle: np.ndarray, strip: np.ndarray, most: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Write the rows minus the centre into the strip; keep each row's largest magnitude so far."""
    bits, magnitude = x.view(np.uint32), np.uint32(0x7FFFFFFF)  # all but the sign
    at = np.uint64(start)
    for i in range(len(x)):
        to, largest = np.uint64(i * WIDE), most[i]
        for k in range(np.uint64(width)):
            strip[to + k] = x[i, at + k] - middle[k]
            largest = max(largest, np.uint32(bits[i, at + k] & magnitude))
        most[i] = largest


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _tile(
    strip: np.ndarray, i: int, j: int, sums: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Add the products of rows i..i+3 with rows j..j+3 of a strip."""
    a, e = np.uint64(i * WIDE), np.uint64(j * WIDE)
    b, c, d = a + np.uint64(WIDE), a + np.uint64(2 * WIDE), a + np.uint64(3 * WIDE)
    f, g, h = e + np.uint64(WIDE), e + np.uint64(2 * WIDE), e + np.uint64(3 * WIDE)
    ae = af = ag = ah = be = bf = bg = bh = np.float32(0)
    ce = cf = cg = ch = de = df = dg = dh = np.float32(0)
    for k in range(np.uint64(WIDE)):
        p, q, r, s = strip[a + k], strip[b + k], strip[c + k], strip[d + k]
        t, u, v, w = strip[e + k], strip[f + k], strip[g + k], strip[h + k]
        ae += p * t
        af += p * u
        ag += p * v
        ah += p * w
        be += q * t
        bf += q * u
        bg += q * v
        bh += q * w
        ce += r * t
        cf += r * u
        cg += r * v
        ch += r * w
        de += s * t
        df += s * u
        dg += s * v
        dh += s * w
    for column, (one, two, three, four) in enumerate(
        ((ae, be, ce, de), (af, bf, cf, df), (ag, bg, cg, dg), (ah, bh, ch, dh))
    ):
        sums[i, j + column] += one
        sums[i + 1, j + column] += two
        sums[i + 2, j + column] += three
        sums[i + 3, j + column] += four
