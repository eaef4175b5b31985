"""Aggregation of updates that are read in blocks of columns, such as files larger than memory.

A rule that treats each coordinate by itself is applied to one block after the other. A rule that
weighs the rows by their lengths, angles and distances needs no row as a whole: their products are
summed over the blocks, in float64, and n points with the same products (n, n + 1) stand for the
rows. The rule of the table is asked what it makes of those; its weights mix the rows in a second
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fedrobust.aggregation.aggregator import aggregate, build
from fedrobust.aggregation.distances import three_rows
from fedrobust.aggregation.preconditions import check, resolve_pre, resolve_rule, with_fewer
from fedrobust.aggregation.record import mixed, weighted
from fedrobust.aggregation.survey import survey
from fedrobust.aggregation.tables import is_built_in, is_coordinate_wise
from fedrobust.failures import Refusal
from fedrobust.matrix import computable, narrowed
from fedrobust.spec import Spec, SpecError, parameters, split

BY_PRODUCTS = (
    "mean", "krum", "multi_krum", "cge", "mda", "smea", "geometric_median", "rfa", "norm_clipping",
    "caf", "hierarchical_clustering_krum", "huber", "fednga", "clipped_clustering",
    "centered_clipping", "median_of_means",
)  # fmt: skip
MIXES = ("nnm", "bucketing", "clip", "arc")  # pre-aggregators that look at the products alone
BLOCK = 1 << 22  # values of a block of columns
CLOSE = 1e-6  # relative: the points' aggregate must be their mixture, or the rule is none of these


class Matrix(Protocol):
    """Updates (n, d) that are read in blocks of columns, from the first to the last."""

    @property
    def n(self) -> int:
        """Rows."""

    @property
    def d(self) -> int:
        """Columns."""

    def blocks(self, width: int) -> Iterator[Tensor]:
        """Read all columns in order, (n, width) or fewer at a time, each valid until the next."""


@dataclass(frozen=True)
class Dense:
    """A tensor (n, d) in memory."""

    updates: Tensor

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.updates)

    @property
    def d(self) -> int:
        """Columns."""
        return self.updates.shape[1]

    def blocks(self, width: int) -> Iterator[Tensor]:
        """Read all columns in order."""
        yield from self.updates.split(width, dim=1)


@dataclass
class Streamed:
    """What a streamed aggregation found, filled in as it goes.

    Attributes
    ----------
    passes
        How often the updates were read.
    set_aside
        Rows with values that are not finite.
    weights
        How much each row counts, (n,); None for rules that treat each coordinate by itself.
    """

    passes: int = 0
    set_aside: list[int] = field(default_factory=list)
    weights: Tensor | None = None


def check_streamed(spec: Spec, pre: Sequence[Spec] = ()) -> None:
    """Check that a rule and its pre-aggregators can be computed from blocks of columns.

    Raises
    ------
    SpecError
        For an unknown name or setting; for a rule that needs whole rows, memory, or more than the
        updates.
    """
    resolve_rule(spec)
    name, settings = split(spec)
    fits = is_built_in(name) and (is_coordinate_wise(name) or name in BY_PRODUCTS)
    wanted = set(parameters(resolve_rule(spec)[0])) & {"memory", "model", "layers", "root", "loss"}
    if not fits or (is_coordinate_wise(name) and wanted - set(settings)):
        raise SpecError(
            f"rule {name!r} needs whole rows in memory, or more than the updates: streamed are the"
            f" rules that treat each coordinate by itself, and {', '.join(BY_PRODUCTS)}"
        )
    for one in pre:
        resolve_pre(one)
        if split(one)[0] not in MIXES:
            raise SpecError(
                f"pre-aggregator {split(one)[0]!r} needs whole rows in memory: streamed are"
                f" {', '.join(MIXES)}"
            )


def aggregate_streamed(
    updates: Matrix,
    spec: Spec,
    *,
    pre: Sequence[Spec] = (),
    generator: torch.Generator | None = None,
    found: Streamed | None = None,
    voidable: bool = False,
) -> Iterator[Tensor | None]:
    """Aggregate as ``aggregate`` does, block by block: yields the aggregate's parts in order.

    Parameters
    ----------
    updates
        Read once or twice (see ``voidable``). Rows with a value that is not finite are set aside,
        and count against f.
    found
        Is told what there is to tell; complete when the last part has been taken.
    voidable
        Whether a part may be None: all parts before it are void, and come anew. A rule that treats
        each coordinate by itself then reads the updates once, and again only where a row turned out
        not to be finite; otherwise it looks for such rows first.

    Raises
    ------
    SpecError
        As ``check_streamed``.
    Refusal
        If the updates are too few for the rule, or none is finite.
    """
    check_streamed(spec, pre)
    check(spec, n=updates.n, pre=pre)
    told = Streamed() if found is None else found
    if is_coordinate_wise(split(spec)[0]) and not pre:
        return _by_columns(updates, spec, generator, told, voidable)
    return _by_products(updates, spec, tuple(pre), generator, told)


def block_width(updates: Matrix) -> int:
    """Return how many columns a block has."""
    return max(1, BLOCK // updates.n)


def _by_columns(
    updates: Matrix, spec: Spec, generator: torch.Generator | None, told: Streamed, voidable: bool
) -> Iterator[Tensor | None]:
    """One pass, and one more before it (or after it, where ``voidable``) for rows to set aside."""
    finite = torch.ones(updates.n, dtype=torch.bool)
    told.passes += 1
    for block in updates.blocks(block_width(updates)):
        finite &= torch.isfinite(survey(computable(block), "").largest)
        if voidable and bool(finite.all()):
            yield aggregate(block, spec, generator=generator)
    if voidable and bool(finite.all()):
        return
    rule = finite_only(spec, (), finite, told)[0]
    if voidable:
        yield None
    told.passes += 1
    for block in updates.blocks(block_width(updates)):
        yield aggregate(kept_rows(block, finite), rule, generator=generator)


def _by_products(
    updates: Matrix,
    spec: Spec,
    pre: tuple[Spec, ...],
    generator: torch.Generator | None,
    told: Streamed,
) -> Iterator[Tensor | None]:
    """Two passes: the products of the rows, then their mixture by what the rule says of them."""
    told.passes += 1
    gram, finite = products_of(updates)
    rule, chain = finite_only(spec, pre, finite, told)
    points = points_of(gram, finite)
    mix = mixture_of(points, rule, chain, generator, finite, told)
    told.passes += 1
    for block in updates.blocks(block_width(updates)):
        kept = kept_rows(block, finite)
        yield narrowed(mix(computable(kept)), block.dtype, split(spec)[0])


def finite_only(
    spec: Spec, pre: tuple[Spec, ...], finite: Tensor, told: Streamed
) -> tuple[Spec, tuple[Spec, ...]]:
    """Count the rows that are not finite against f, and check again."""
    told.set_aside = (~finite).nonzero().flatten().tolist()
    lost = len(told.set_aside)
    if lost == len(finite):
        raise Refusal(f"none of the {lost} updates is finite")
    rule, chain = with_fewer(spec, lost), tuple(with_fewer(one, lost) for one in pre)
    check(rule, n=len(finite) - lost, pre=chain)
    return rule, chain


def kept_rows(block: Tensor, finite: Tensor) -> Tensor:
    """Return a block without the rows that are set aside."""
    return block if bool(finite.all()) else block[finite]


def products_of(updates: Matrix) -> tuple[Tensor, Tensor]:
    """Return the products (n + 1, n + 1) of all rows, and of the origin, about a common centre.

    The centre is the coordinate-wise median of three rows, as for rules in memory. Also which rows
    are finite; the products of the others mean nothing.
    """
    n = updates.n
    gram = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    finite = torch.ones(n, dtype=torch.bool)
    for block in updates.blocks(max(1, BLOCK // (2 * n))):
        good = torch.isfinite(block).all(1)
        finite &= good
        rows = torch.zeros(n + 1, block.shape[1], dtype=torch.float64)
        rows[:n] = block
        rows[:n][~good] = 0
        rows -= three_rows(rows[:n], None).median(0).values
        gram.addmm_(rows, rows.T)
    return gram, finite


def points_of(gram: Tensor, finite: Tensor) -> Tensor:
    """Return points (m, m + 1), float64, with the lengths, angles and distances of the finite rows.

    The rows about their centre are placed first, and moved by the centre afterwards: distances keep
    their digits where the rows are close together and far from zero.

    Parameters
    ----------
    gram
        Products of the rows and, last, of the origin about a common centre.
    """
    rows = finite.nonzero().flatten()
    own = gram[rows][:, rows]
    values, vectors = torch.linalg.eigh((own + own.T) / 2)
    lengths = values.clamp(min=0).sqrt()
    placed = vectors * lengths
    real = lengths > 1e-10 * lengths.max()
    along = torch.where(real, vectors.T @ gram[rows, -1] / lengths.where(real, 1.0), 0.0)
    aside = (gram[-1, -1] - along.square().sum()).clamp(min=0).sqrt()
    return torch.cat([placed - along, -aside.expand(len(rows), 1)], dim=1)


def mixture_of(
    points: Tensor,
    rule: Spec,
    chain: tuple[Spec, ...],
    generator: torch.Generator | None,
    finite: Tensor,
    told: Streamed,
) -> Callable[[Tensor], Tensor]:
    """Return what turns a block of finite rows (m, b) into its part of the aggregate."""
    name = split(rule)[0]
    if is_coordinate_wise(name):
        mixing = torch.eye(len(points), dtype=torch.float64)
        for one in chain:
            function, settings = resolve_pre(one)
            wanted = _drawing(function, generator)
            step = function(mixed(points, mixing), **settings, **wanted)
            mixing = step @ mixing
        return lambda block: aggregate(mixed(block, mixing), rule)
    outcome = build(rule, pre=chain).apply(points, None, generator)
    weights = outcome.weights
    if weights is None or not _mixes(points, weights, outcome.aggregate):
        raise Refusal(f"{name} is no mixture of these updates: aggregate them in memory")
    counted = weights.double()
    told.weights = torch.zeros(len(finite), dtype=torch.float64)
    told.weights[finite] = counted
    return lambda block: weighted(block, counted)


def _drawing(function: Callable[..., Any], generator: torch.Generator | None) -> Mapping[str, Any]:
    return {"generator": generator} if "generator" in parameters(function) else {}


def _mixes(points: Tensor, weights: Tensor, found: Tensor) -> bool:
    """Whether an aggregate is the rows' mixture by their weights, as a second pass will make it."""
    away = (weights.double() @ points - found).norm()
    return bool(away <= CLOSE * points.norm(dim=1).max())
