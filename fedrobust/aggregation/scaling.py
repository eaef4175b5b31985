"""Rows in a range where squares neither overflow nor vanish.

A common unit (a power of two, so that nothing is rounded) is taken out of the rows and put back
into the aggregate, for rules that follow the scale. Rows that are still farther than ``FARTHEST``
are pulled back there along their direction: as far as any honest row is concerned, nothing changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Between these, squares and their sums over 1e9 coordinates keep their digits.
SAFE = {torch.float32: (1e-12, 1e15), torch.float64: (1e-120, 1e120)}
FARTHEST = {torch.float32: 1e30, torch.float64: 1e140}


def common_unit(largest: Tensor, dtype: torch.dtype) -> float:
    """Return the power of two to divide rows by: 1 where the typical row is in the safe range."""
    positive = largest[largest > 0]
    if not len(positive):
        return 1.0
    # The median: one huge row must not choose the unit of all.
    typical = float(positive.median())
    low, high = SAFE[dtype]
    if low <= typical <= high:
        return 1.0
    # The inverse of 2^-1000 is a finite float64 still.
    return 2.0 ** max(-1000, round(math.log2(typical)))


def in_range(updates: Tensor, largest: Tensor, *, follows_scale: bool) -> tuple[Tensor, float]:
    """Return the rows in a safe range, and the unit that the aggregate is to be multiplied by.

    Parameters
    ----------
    updates
        (n, d), finite, float32 or float64; returned as they are where they are in range already.
    largest
        Largest magnitude of each row, (n,) float64, on the CPU: see ``survey``.
    follows_scale
        Whether the rule follows a common unit; otherwise only far rows are pulled back.
    """
    unit = common_unit(largest, updates.dtype) if follows_scale else 1.0
    farthest = FARTHEST[updates.dtype]
    if unit == 1 and bool((largest <= farthest).all()):
        return updates, 1.0
    pulled_back = farthest / largest.clamp(min=1e-300)
    factors = torch.minimum(torch.full_like(largest, 1 / unit), pulled_back)
    # In float64: a factor may be beyond float32 where the result is not.
    return (updates.double() * factors.to(updates.device)[:, None]).to(updates.dtype), unit
