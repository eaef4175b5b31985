"""What an attacker measures on the updates it sees: mean, spread, median, distances.

Everything is summed in float64 over blocks of columns, so that a mean far larger than the spread
loses nothing and the extra memory stays O(d).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedrobust.matrix import block_values

# Of a float64 block: 8 MiB.
ENTRIES = 1 << 20


def blocks(updates: Tensor, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (columns, the (h, width) float64 block of these columns); ``rows`` (h,) picks rows."""
    h = updates.shape[0] if rows is None else len(rows)
    width = max(1, block_values(updates.device, ENTRIES) // max(1, h))
    for start in range(0, updates.shape[1], width):
        columns = slice(start, min(start + width, updates.shape[1]))
        block = updates[:, columns]
        yield columns, (block if rows is None else block[rows]).double()


def own_blocks(updates: Tensor, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the same, in memory that may be written."""
    for columns, block in blocks(updates, rows):
        own = rows is not None or updates.dtype != block.dtype
        yield columns, block if own else block.clone()


def repeat(vector: Tensor, f: int, like: Tensor) -> Tensor:
    """Give all f attackers one vector: (f, d) in ``like``'s dtype, one new row in memory."""
    # A copy: an expanded view of an honest row would hand the attackers the row itself.
    return vector.to(dtype=like.dtype, device=like.device, copy=True).expand(f, -1)


def empty_rows(honest: Tensor, f: int, out: Tensor | None) -> Tensor:
    """Return (f, d) memory of ``honest``'s type to write different rows into: ``out``, or new."""
    return honest.new_empty(f, honest.shape[1]) if out is None else out


def mean(honest: Tensor) -> Tensor:
    """Coordinate-wise mean, (d,) float64."""
    if len(honest) == 1:
        return honest[0].to(torch.float64, copy=True)
    out = honest.new_empty(honest.shape[1], dtype=torch.float64)
    for columns, block in blocks(honest):
        out[columns] = block.mean(dim=0)
    return out


def moments(honest: Tensor, *, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Coordinate-wise mean and standard deviation, both (d,) float64, in two passes.

    Raises
    ------
    ValueError
        If there are not more rows than ``ddof``, or ``ddof`` is neither 0 nor 1.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof is 0 (population) or 1 (sample), got {ddof!r}")
    if honest.shape[0] <= ddof:
        need = ddof + 1
        raise ValueError(f"ddof={ddof} needs at least {need} updates, got {honest.shape[0]}")
    centre = honest.new_empty(honest.shape[1], dtype=torch.float64)
    std = torch.empty_like(centre)
    for columns, block in own_blocks(honest):
        centre[columns] = block.mean(dim=0)
        # Not E[x^2] - mean^2, which cancels where the mean is far larger than the spread.
        squares = block.sub_(centre[columns]).square_().sum(dim=0)
        std[columns] = (squares / (honest.shape[0] - ddof)).sqrt()
    return centre, std


def ascending(lines: Tensor) -> Tensor:
    """Sort each line; numpy does short lines about ten times faster than torch on a CPU."""
    if lines.device.type == "cpu":
        return torch.from_numpy(np.sort(lines.numpy(), axis=1))
    return lines.sort(dim=1).values


def median(honest: Tensor) -> Tensor:
    """Coordinate-wise median, (d,) float64; for even h the mean of the two middle values."""
    low, high = (honest.shape[0] - 1) // 2, honest.shape[0] // 2
    out = honest.new_empty(honest.shape[1], dtype=torch.float64)
    for columns, block in blocks(honest):
        # Transposed first: sorting runs along memory, (width, h).
        ordered = ascending(block.t().contiguous())
        out[columns] = (ordered[:, low] + ordered[:, high]) / 2
    return out


def centred_gram(honest: Tensor) -> Tensor:
    """Products of all pairs of rows, each less the mean row: (h, h) float64."""
    gram = honest.new_zeros((honest.shape[0],) * 2, dtype=torch.float64)
    for _, block in blocks(honest):
        # All rows are honest here: nobody can drag the mean away, as he could at the server.
        centred = block - block.mean(dim=0)
        gram.addmm_(centred, centred.t())
    return gram


def squared_distances(honest: Tensor) -> Tensor:
    """Squared Euclidean distance of every pair of rows, (h, h) float64."""
    gram = centred_gram(honest)
    norms = gram.diagonal()
    # Rounding may make it negative, and its root NaN; a row is at exactly 0 from itself.
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp_(min=0).fill_diagonal_(0)


def medoid(honest: Tensor) -> Tensor:
    """Return the row with the least summed distance to the others, (d,) float64."""
    return honest[squared_distances(honest).sqrt().sum(dim=1).argmin()].double()


def along(honest: Tensor, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of ``point - x_i`` and their products with ``direction``: (h,), (h,)."""
    squares = honest.new_zeros(honest.shape[0], dtype=torch.float64)
    products = torch.zeros_like(squares)
    for columns, block in blocks(honest):
        gap = point[columns] - block
        squares += gap.square().sum(dim=1)
        products += gap @ direction[columns]
    return squares, products


def reject(vector: Tensor, axis: Tensor) -> Tensor:
    """Return the part of a vector orthogonal to an axis of norm 1; exactly zero if only noise."""
    rest = vector - (vector @ axis) * axis
    noise = 1e-12 * torch.linalg.vector_norm(vector)
    return rest if torch.linalg.vector_norm(rest) > noise else torch.zeros_like(rest)


def unit(vector: Tensor) -> Tensor:
    """Scale to Euclidean norm 1; the zero vector stays zero."""
    norm = torch.linalg.vector_norm(vector)
    return vector / norm if norm > 0 else torch.zeros_like(vector)
