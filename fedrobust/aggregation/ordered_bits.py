"""Order statistics without sorting: bisection on the bits of the values.

A sort of (n, b) values moves all of them some times, and an index beside each. Here a rank is found
by 32 questions "how many values are at most t?", one read each, whatever n; the answer is the very
value, not an approximation, since floats are ordered as their bits are. It pays on a GPU, where
reads are fast and sorting along the clients is slow, from some number of clients on.
"""

from __future__ import annotations

import torch
from torch import Tensor

FROM = 64  # clients: below, a sort on a GPU; a guess until `make gpu --cases order` has measured it
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def pays(updates: Tensor) -> bool:
    """Whether ranks of these columns are found by bisection rather than by sorting."""
    return updates.device.type == "cuda" and len(updates) >= FROM and updates.dtype in INTEGER


def keys(values: Tensor) -> Tensor:
    """Return integers in the order of the values; NaN comes last, -0 just before 0."""
    whole = INTEGER[values.dtype]
    ordered = _turned(values.contiguous().view(whole))
    return ordered.masked_fill_(values.isnan(), torch.iinfo(whole).max)


def values_of(ordered: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of ``keys``."""
    return _turned(ordered).view(dtype)


def _turned(bits: Tensor) -> Tensor:
    """Turn all bits but the sign of negative numbers over: they grow with the magnitude."""
    limits = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (limits.bits - 1)) & limits.max)


def key_of_rank(ordered: Tensor, rank: int) -> Tensor:
    """Return each column's key of a rank, counted from 0: (n, b) -> (b,)."""
    limits = torch.iinfo(ordered.dtype)
    low = torch.full_like(ordered[0], limits.min)
    high = torch.full_like(ordered[0], limits.max)
    for _ in range(limits.bits):
        # The mean, rounded down, of two integers whose sum may overflow.
        middle = (low & high) + ((low ^ high) >> 1)
        enough = (ordered <= middle).sum(0) > rank
        high = torch.where(enough, middle, high)
        # middle + 1 overflows only where middle is the largest, and then there are enough.
        low = torch.where(enough, low, middle + 1)
    return high


def rank_mean(values: Tensor, first: int, last: int) -> Tensor:
    """Average the values of ranks first..last-1 of each column, summed in float64: (n, b) -> (b,).

    The same values as of a sort enter the sum, in the clients' order instead of the ranks'.
    """
    ordered = keys(values)
    low = key_of_rank(ordered, first)
    high = low if last - first == 1 else key_of_rank(ordered, last - 1)
    inside = (ordered > low) & (ordered < high)
    # Equal values share their ranks: of those at either end as many count as are in between.
    of_low = (ordered <= low).sum(0).clamp(max=last) - first
    of_high = last - (ordered < high).sum(0).clamp(min=first)
    least, most = (values_of(end, values.dtype).double() for end in (low, high))
    count = last - first
    ends = of_low.double() / count * least + of_high.double() / count * most
    mean = ends + _shared(values, inside, count)
    return torch.where(low == high, least, mean).to(values.dtype)


def _shared(values: Tensor, taken: Tensor, count: int) -> Tensor:
    """Return the sum of each column's taken values over a count, in float64."""
    nothing = values.new_zeros(())
    if values.dtype == torch.float64:  # divided first: the sum of huge values overflows
        return torch.where(taken, values / count, nothing).sum(0)
    return torch.where(taken, values, nothing).sum(0, dtype=torch.float64) / count


def nearest_mean(values: Tensor, centre: Tensor, keep: int) -> Tensor:
    """Average each column's ``keep`` values nearest to a centre (b,): (n, b) -> (b,).

    Of equally near values the earlier counts, as in a stable sort.
    """
    ordered = keys((values - centre).abs())
    edge = key_of_rank(ordered, keep - 1)
    nearer, on_edge = ordered < edge, ordered == edge
    taken = nearer | (on_edge & (on_edge.cumsum(0) <= keep - nearer.sum(0)))
    return _shared(values, taken, keep).to(values.dtype)
