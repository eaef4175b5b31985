"""Ask a rule in few coordinates: exact for rules that read rows through their products alone.

Whatever a search tries against such a rule lies in the span of the honest rows, a few directions
and what the rule remembers. In an orthonormal basis of that span every vector has as many
coordinates as there are vectors, with the same lengths and products, and the rule's own code
answers there as it would in full: a question costs O(n^2) in the place of O(n d).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.attacks.probe import Rule

WIDTH = 2048  # columns that are factored at once: the extra memory stays O(WIDTH m)


@dataclass(frozen=True)
class Reducible:
    """A rule that can be asked in coordinates.

    Attributes
    ----------
    remembers
        Matrices (k, d) that the rule remembers.
    placed
        ``(honest rows, the same matrices) -> rule``, both in coordinates.
    """

    remembers: tuple[Tensor, ...]
    placed: Callable[[Tensor, list[Tensor]], Rule]


def reducible(rule: Rule | None) -> Reducible | None:
    """Return how a rule is asked in coordinates; None where nobody says that it can be."""
    from fedrobust.aggregation import RULES, follows_rotation
    from fedrobust.spec import split

    if rule is None:
        return None
    if callable(rule):
        known = getattr(rule, "reducible", None)
        return None if known is None else known()
    if split(rule)[0] not in RULES or not follows_rotation(rule):
        return None
    return Reducible((), lambda honest, remembered: rule)


def in_span(
    rule: Rule | None, honest: Tensor, vectors: Sequence[Tensor]
) -> tuple[Rule | None, Tensor, list[Tensor]]:
    """Return the rule, the honest rows (h, m) and vectors (m,) in coordinates, m as few as may be.

    Where that is not exact, or saves nothing, all of them are returned as they came.
    """
    asked = reducible(rule)
    rows = [honest, *(vector[None] for vector in vectors), *(asked.remembers if asked else ())]
    if asked is None or sum(map(len, rows)) > honest.shape[1]:
        return rule, honest, list(vectors)
    seen, *others = coordinates(rows)
    told, remembered = others[: len(vectors)], others[len(vectors) :]
    return asked.placed(seen, remembered), seen, [one[0] for one in told]


def coordinates(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return matrices (k_i, d) in an orthonormal basis of all their rows: (k_i, m) float64.

    From one triangular factor, block by block: no square of a length is taken, so that rows that
    are close together and far from zero keep their distances to float64's precision.

    Parameters
    ----------
    parts
        m = k_1 + k_2 + ... rows in all, m <= d.
    """
    rows = sum(len(part) for part in parts)
    triangle = parts[0].new_empty((0, rows), dtype=torch.float64)
    for start in range(0, parts[0].shape[1], WIDTH):
        block = torch.cat([part[:, start : start + WIDTH].double() for part in parts])
        triangle = torch.linalg.qr(torch.cat([triangle, block.T]), mode="r").R
    return list(triangle.T.contiguous().cpu().split([len(part) for part in parts]))
