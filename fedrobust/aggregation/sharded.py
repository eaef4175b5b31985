"""Aggregation of updates whose columns are cut into shards, which nobody holds or reads together.

A shard is a ``Matrix`` of some of the columns, wherever it is. It is read by whoever holds it, at
most twice: ``look`` sums its part of the rows' products, ``settle`` puts the parts together and
asks the rule once, ``parts_of`` makes a shard's part of the aggregate. What crosses between them is
n x n numbers, and the aggregate itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.aggregation.aggregator import aggregate
from fedrobust.aggregation.preconditions import check
from fedrobust.aggregation.streamed import (
    Matrix,
    Streamed,
    block_width,
    check_streamed,
    finite_only,
    kept_rows,
    mixture_of,
    points_of,
    products_of,
)
from fedrobust.aggregation.tables import is_coordinate_wise
from fedrobust.matrix import computable, narrowed
from fedrobust.spec import Spec, split


@dataclass(frozen=True)
class Look:
    """What a first pass over a shard found.

    Attributes
    ----------
    finite
        Which rows are, (n,).
    products
        The shard's part of the rows' products, (n + 1, n + 1) float64, see ``streamed.points_of``;
        None for rules that need none.
    """

    finite: Tensor
    products: Tensor | None = None


@dataclass(frozen=True)
class Settled:
    """What a second pass makes of a shard.

    Attributes
    ----------
    rule
        With f less the rows that are set aside.
    finite
        The rows that count, (n,).
    mix
        Block of these rows (m, b) -> part of the aggregate (b,); None: the rule, coordinate by
        coordinate.
    """

    rule: Spec
    finite: Tensor
    mix: Callable[[Tensor], Tensor] | None = None


def needs_products(spec: Spec, pre: Sequence[Spec] = ()) -> bool:
    """Whether a rule looks at more than one coordinate at a time."""
    return bool(pre) or not is_coordinate_wise(split(spec)[0])


def check_sharded(spec: Spec, *, n: int, pre: Sequence[Spec] = ()) -> None:
    """Check that a rule can be computed from shards of n rows.

    Raises
    ------
    SpecError
        As ``streamed.check_streamed``.
    ValueError
        If n rows are too few for it.
    """
    check_streamed(spec, pre)
    check(spec, n=n, pre=pre)


def look(shard: Matrix, *, products: bool) -> Look:
    """Read a shard once: which rows are finite, and their products where they are needed."""
    if products:
        gram, finite = products_of(shard)
        return Look(finite, gram)
    finite = torch.ones(shard.n, dtype=torch.bool)
    for block in shard.blocks(block_width(shard)):
        finite &= torch.isfinite(block).all(1)
    return Look(finite)


def settle(
    looks: Sequence[Look],
    spec: Spec,
    *,
    pre: Sequence[Spec] = (),
    generator: torch.Generator | None = None,
    found: Streamed | None = None,
) -> Settled:
    """Put what was seen of all shards together, and decide what is made of each.

    A row with a value that is not finite in one shard is set aside in all.

    Parameters
    ----------
    looks
        Of all shards, in order: sums of floats depend on it.
    found
        Is told what there is to tell.

    Raises
    ------
    Refusal
        If too few rows are finite, or the rule is no mixture of them.
    """
    told = Streamed() if found is None else found
    told.passes = 2
    finite = torch.stack([one.finite for one in looks]).all(0)
    rule, chain = finite_only(spec, tuple(pre), finite, told)
    if not needs_products(spec, pre):
        return Settled(rule, finite)
    gram = sum((one.products for one in looks if one.products is not None), torch.zeros(()))
    mix = mixture_of(points_of(gram, finite), rule, chain, generator, finite, told)
    return Settled(rule, finite, mix)


def parts_of(shard: Matrix, settled: Settled) -> Iterator[Tensor]:
    """Read a shard again and yield its part of the aggregate, block by block."""
    for block in shard.blocks(block_width(shard)):
        kept = kept_rows(block, settled.finite)
        if settled.mix is None:
            yield aggregate(kept, settled.rule)
        else:
            yield narrowed(settled.mix(computable(kept)), block.dtype, split(settled.rule)[0])
