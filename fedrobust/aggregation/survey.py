"""What the one read that guards a rule finds beside the rows that are not finite.

Before a rule runs, its rows are read once for values that are not finite or out of range. A rule
whose record says what it looks at (``Rule.looks_at``) gets that from the same read: while it runs,
the products, lengths or sums of signs of exactly these rows are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.aggregation import gram, kernels, reads
from fedrobust.failures import Refusal


@dataclass(frozen=True)
class Survey:
    """What one read found of a matrix (n, d).

    Attributes
    ----------
    rows
        The matrix itself.
    largest
        Each row's largest magnitude (n,) float64, on the CPU; infinity or NaN where it holds a
        value that is not finite.
    about_three, about_origin
        Products of the rows about the median of three of them, or as they are, (n, n) float64.
    lengths
        Lengths of the rows, (n,) float64.
    signs
        Sums of the columns' signs, (d,).
    """

    rows: Tensor
    largest: Tensor
    about_three: Tensor | None = None
    about_origin: Tensor | None = None
    lengths: Tensor | None = None
    signs: Tensor | None = None


_current: ContextVar[Survey | None] = ContextVar("what is known of a rule's rows", default=None)


def survey(rows: Tensor, looks_at: str) -> Survey:
    """Read a matrix once, for its largest magnitudes and for what a rule looks at.

    Parameters
    ----------
    looks_at
        "distances", "angles", "lengths", "signs", or "" for the magnitudes alone. Where there is no
        kernel for the rows (see ``kernels.fits``) the rule finds the rest itself.
    """
    if not len(rows):
        return Survey(rows, torch.zeros(0))
    if not kernels.fits(rows):
        low, high = rows.aminmax(dim=1)  # NaN propagates
        return Survey(rows, torch.maximum(-low, high).double().cpu())
    if looks_at == "distances":
        products, largest = gram.gram(rows, three=three_of(len(rows)))
        return Survey(rows, largest.double(), about_three=products)
    if looks_at == "angles":
        products, largest = gram.gram(rows)
        return Survey(rows, largest.double(), about_origin=products)
    if looks_at == "lengths":
        lengths, largest = reads.lengths_and_largest(rows)
        return Survey(rows, largest.double(), lengths=lengths)
    if looks_at == "signs":
        signs, largest = reads.signs_and_largest(rows)
        return Survey(rows, largest.double(), signs=signs)
    return Survey(rows, kernels.largest_values(rows).double())


def three_of(n: int) -> tuple[int, int, int]:
    """Return the rows whose median is the centre of products: the first, middle and last of n."""
    return 0, n // 2, n - 1


@contextmanager
def at_hand(found: Survey) -> Iterator[None]:
    """Let rules find, inside, what is known of these very rows."""
    token = _current.set(found)
    try:
        yield
    finally:
        _current.reset(token)


def known(rows: Tensor) -> Survey | None:
    """Return what is known of a matrix: None unless it is the one that was surveyed."""
    found = _current.get()
    return found if found is not None and found.rows is rows else None


def finite_rows(found: Survey) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows whose values are all finite, which those are, and their largest values.

    Raises
    ------
    Refusal
        If there is none.
    """
    rows, largest = found.rows, found.largest
    finite = torch.isfinite(largest)
    if not bool(finite.any()):
        raise Refusal(f"none of the {len(rows)} updates is finite")
    kept = rows if bool(finite.all()) else rows[finite.to(rows.device)]
    return kept, finite, largest[finite]
