"""Squared distances between updates, from one matrix of products of centred rows.

What is (n, n) or (n,) lives on the CPU, wherever the updates are: decisions are small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation import kernels
from fedrobust.aggregation.columns import median
from fedrobust.aggregation.gram import gram as gram_of
from fedrobust.aggregation.gram import mixed_gram
from fedrobust.aggregation.survey import known, three_of
from fedrobust.matrix import block_values

WIDTH = 4096  # columns per block: 100 rows of 4,096 float32 are 1.6 MB
FAR = 16.0  # squared: rows farther from the centre than 4 times from each other lose digits
LARGEST = 1e15  # products of larger float32 values overflow; such rows are scaled down to it
SMALLEST = 1e-20  # squared length below which products of float32 values lose digits
TINY = 1e-30


def centred_gram(updates: Tensor, mixing: Tensor | None = None) -> Tensor:
    """Return the (n, n) products of the rows about a common centre, float64.

    Blocks of columns are multiplied in the updates' own precision and summed in float64. The centre
    is the coordinate-wise median of three rows; where it turns out to be far from the rows (three
    rows can be an attacker's), it is that of all rows instead. A mean is moved anywhere by one row.

    Parameters
    ----------
    mixing
        (m, n): the products (m, m) are those of the mixed rows. They are taken of the mixed rows
        themselves, block by block: in ``mixing @ gram @ mixing.T`` two far rows that cancel in
        their mean would leave their rounding errors behind.
    """
    gram = _about_three(updates, mixing)
    if near(gram):
        return gram
    updates = updates.detach()
    if mixing is not None:
        updates = mixing.to(updates) @ updates
    return products_of_any_size(updates, median(updates))


def _about_three(updates: Tensor, mixing: Tensor | None) -> Tensor:
    """Return the products about the median of three rows, which may be known already."""
    found = known(updates)
    if mixing is None and found is not None and found.about_three is not None:
        return found.about_three
    updates = updates.detach()
    if kernels.fits(updates):
        if mixing is not None:
            return mixed_gram(updates, mixing, three=three_of(len(mixing)))
        return gram_of(updates, three=three_of(len(updates)))[0]
    first, second, third = three_rows(updates, mixing)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    return products(updates, torch.maximum(low, torch.minimum(high, third)), mixing=mixing)


def three_rows(updates: Tensor, mixing: Tensor | None) -> Tensor:
    """Return the first, the middle and the last of the (mixed) rows, (3, d)."""
    chosen = torch.tensor(three_of(len(updates) if mixing is None else len(mixing)))
    if mixing is None:
        return updates[chosen.to(updates.device)]
    return mixing[chosen].to(updates) @ updates


def near(gram: Tensor) -> bool:
    """Whether the rows are about as far from their common centre as from each other."""
    norms = gram.diagonal()
    typical = squared_from(gram).median(0).values
    return bool(torch.isfinite(gram).all()) and bool((norms <= FAR * typical).all())


def products(
    updates: Tensor, centre: Tensor, scales: Tensor | None = None, mixing: Tensor | None = None
) -> Tensor:
    """Return the (n, n) products of the rows minus a centre, each row times its scale, float64."""
    if scales is None and mixing is None and kernels.fits(updates):
        return gram_of(updates, centre=centre.contiguous())[0]
    if scales is None and mixing is None and updates.device.type == "cuda":
        return products_at_once(updates, centre).cpu()
    n = len(updates) if mixing is None else len(mixing)
    gram = torch.zeros(n, n, dtype=torch.float64, device=updates.device)
    mixed = None if mixing is None else mixing.to(updates)
    for block, middle in zip(updates.split(WIDTH, 1), centre.split(WIDTH), strict=True):
        block = block if mixed is None else mixed @ block
        if scales is None:
            offsets = block - middle
        else:
            # Scaled first: the difference of two values near the largest of float32 overflows.
            offsets = block * scales[:, None] - middle * scales[:, None]
        gram += offsets @ offsets.T
    return gram.cpu()


def products_at_once(updates: Tensor, centre: Tensor) -> Tensor:
    """Return the same, many blocks in one batched product: a launch a block costs a GPU more."""
    n = len(updates)
    gram = torch.zeros(n, n, dtype=torch.float64, device=updates.device)
    step = max(1, block_values(updates.device, 1 << 20) // (n * WIDTH)) * WIDTH
    for rows, middle in zip(updates.split(step, 1), centre.split(step), strict=True):
        offsets = rows - middle
        whole = offsets.shape[1] // WIDTH * WIDTH
        if whole:
            parts = offsets[:, :whole].unflatten(1, (-1, WIDTH)).transpose(0, 1)
            gram += (parts @ parts.mT).sum(0, dtype=torch.float64)
        rest = offsets[:, whole:]
        gram += rest @ rest.T
    return gram


def products_of_any_size(updates: Tensor, centre: Tensor) -> Tensor:
    """Return the products even where values are too large for the products of their precision."""
    gram = products(updates, centre)
    if bool(torch.isfinite(gram).all()):
        return gram
    largest = torch.maximum(updates.amax(1), -updates.amin(1))
    scales = LARGEST / torch.maximum(largest, centre.abs().max()).clamp(min=LARGEST)
    back = 1 / scales.double().cpu()
    return products(updates, centre, scales) * back[:, None] * back[None, :]


def squared_from(gram: Tensor) -> Tensor:
    """Turn products into (n, n) squared distances; symmetric, zero diagonal."""
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp_(min=0)
    # The two halves of a product may differ in the last digit, which would decide ties.
    squared = (squared + squared.T) / 2
    return squared.fill_diagonal_(0)


def squared_distances(updates: Tensor) -> Tensor:
    """Return (n, n) squared Euclidean distances in float64; symmetric, zero diagonal.

    From centred products: |x|^2 + |y|^2 - 2 x.y of raw rows loses all digits where the rows are
    close together and far from zero.
    """
    return squared_from(centred_gram(updates))


def squared_to_mixture(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the squared distance of each row from the weighted mean of the rows, (n,).

    Parameters
    ----------
    weights
        (n,), adding up to 1; any common centre of the products drops out.
    """
    towards = gram @ weights
    return (gram.diagonal() - 2 * towards + weights @ towards).clamp_(min=0)


def norms_from(updates: Tensor, centre: Tensor) -> Tensor:
    """Return the distance of each row from a centre, (n,), summed in float64."""
    updates, centre = updates.detach(), centre.detach()
    # fits wants two rows at least: the centre stands in twice.
    if kernels.fits(updates) and kernels.fits(centre[None].expand(2, -1)):
        return kernels.row_distances(updates, centre).sqrt()
    lengths = _lengths(updates, centre, 1.0)
    # Squares of float64 values overflow beyond 1e154 and vanish below 1e-162.
    lost = (lengths < 1e-150) | ~torch.isfinite(lengths)
    if updates.dtype == torch.float64 and bool(lost.any()):
        for factor in (2.0**-600, 2.0**600):
            scaled = _lengths(updates, centre, factor)
            lengths = torch.where(lost & torch.isfinite(scaled), scaled / factor, lengths)
    return lengths


def _lengths(updates: Tensor, centre: Tensor, factor: float) -> Tensor:
    """Return the lengths of ``factor`` times the rows minus the centre, (n,)."""
    squared = torch.zeros(len(updates), dtype=torch.float64, device=updates.device)
    width = max(1, block_values(updates.device, 1 << 20) // len(updates))
    for rows, part in zip(updates.split(width, 1), centre.split(width), strict=True):
        offsets = rows.double() - part.double()
        if factor != 1:
            offsets = rows.double() * factor - part.double() * factor
        squared += offsets.square_().sum(1)
    return squared.sqrt().cpu()


def products_with(updates: Tensor, vector: Tensor) -> Tensor:
    """Return each row's product with a vector, (n,) float64; in float64 where float32 overflows."""
    found = updates @ vector
    if not bool(torch.isfinite(found).all()):
        found = updates.double() @ vector.double()
    return found.double().cpu()


def norms(updates: Tensor) -> Tensor:
    """Return the length of each row, (n,), float64."""
    found = known(updates)
    if found is not None and found.lengths is not None:
        return found.lengths
    return norms_from(updates, torch.zeros_like(updates[0]))


def clipping(lengths: Tensor, bound: float | Tensor) -> Tensor:
    """Return the factors (n,) in [0, 1] that bring rows of these lengths to ``bound`` at most."""
    return torch.where(lengths > bound, bound / lengths, 1.0)


def cosine_distances(updates: Tensor) -> Tensor:
    """Return 1 - cosine of each pair of rows, (n, n) float64; 1 from a row of zeros."""
    return (1 - cosines(updates)).clamp(0, 2).fill_diagonal_(0)


def cosines(updates: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, (n, n) float64; 0 with a row of zeros."""
    found = known(updates)
    updates = updates.detach()
    origin = torch.zeros_like(updates[0])
    have = None if found is None else found.about_origin
    gram = products(updates, origin) if have is None else have
    if not bool(torch.isfinite(gram).all()) or float(gram.diagonal().min()) < SMALLEST:
        # Squares overflow or lose digits: rows of any size keep their cosines at length 1.
        largest = torch.maximum(updates.amax(1), -updates.amin(1)).double()
        # 1 / largest of the smallest float32 values is beyond float32.
        scales = (1 / largest.clamp(min=1e-300)).clamp(max=1e38).to(updates.dtype)
        gram = products(updates, origin, scales)
    lengths = gram.diagonal().sqrt()
    cosine = gram / (lengths[:, None] * lengths[None, :])
    cosine = torch.where((lengths[:, None] > 0) & (lengths[None, :] > 0), cosine, 0.0)
    return ((cosine + cosine.T) / 2).clamp(-1, 1)


def middle(values: Tensor) -> Tensor:
    """Return the median; of an even number the mean of the two middle values."""
    ordered = values.sort().values
    return ordered[(len(values) - 1) // 2 : len(values) // 2 + 1].mean()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` lowest scores; ties go to the lowest index."""
    return scores.sort(stable=True).indices[:count]


def nearest_sums(squared: Tensor, neighbours: int) -> Tensor:
    """Sum, for each row, its ``neighbours`` smallest distances to other rows."""
    others = squared.clone().fill_diagonal_(float("inf"))
    return others.sort(1).values[:, :neighbours].sum(1)
