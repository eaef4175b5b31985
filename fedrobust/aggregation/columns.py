"""Coordinate-wise rules: each coordinate is sorted over the clients, by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import kernels, ordered_bits, reads
from fedrobust.aggregation.survey import known
from fedrobust.aggregation.weighting import bearable, weighted_median, weighted_ranks
from fedrobust.failures import Refusal
from fedrobust.matrix import block_values
from fedrobust.spec import SpecError, suggest

BLOCK = 1 << 22  # values per block: sorted copies stay in the cache's reach, memory stays flat


def by_blocks(updates: Tensor, column_rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``(n, b) -> (b,)`` to blocks of columns."""
    return torch.cat([column_rule(block) for block in blocks(updates)])


def blocks(updates: Tensor) -> Iterator[Tensor]:
    """Yield views of some columns at a time."""
    size = block_values(updates.device, BLOCK)
    yield from updates.split(max(1, size // len(updates)), dim=1)


def chosen_variant(variants: Mapping[str, Any], variant: str, rule: str) -> Any:
    """Look a variant up.

    Raises
    ------
    ValueError
        ``unknown variant 'epfll' of krum; did you mean 'epfl'?``
    """
    # A list cannot be looked up in a dict: it would raise TypeError, not say what is wrong.
    if not isinstance(variant, str):
        raise SpecError(f"{rule} needs a name for its variant, got {variant!r}")
    if variant not in variants:
        raise SpecError(
            f"unknown variant {variant!r} of {rule}; {suggest(variant, list(variants))}"
        )
    return variants[variant]


def ranked_mean(updates: Tensor, first: int, last: int) -> Tensor:
    """Average the values of ranks first..last-1 of each column."""
    if last <= first:
        raise Refusal(f"no rank is left of {len(updates)} values after cutting {first} each side")
    if kernels.fits(updates):
        return kernels.rank_mean(updates, first, last)
    return by_blocks(updates, lambda block: _ranked_mean(block, first, last))


def _ranked_mean(block: Tensor, first: int, last: int) -> Tensor:
    if ordered_bits.pays(block):
        return ordered_bits.rank_mean(block, first, last)
    return averaged(block.sort(0).values[first:last])


def averaged(values: Tensor) -> Tensor:
    """Average rows in float64: huge values may not overflow their sum."""
    result = values.double().sum(0) / len(values)
    if values.dtype == torch.float64 and not bool(torch.isfinite(result).all()):
        result = (values / len(values)).sum(0)
    return result.to(values.dtype)


def mean_weights(updates: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Average the updates; one attacker moves it anywhere.

    Parameters
    ----------
    weights
        Shares (n,) of the clients, adding up to 1; equal unless given.

    References
    ----------
    Blanchard et al., NeurIPS 2017, Lemma 1: no linear rule tolerates one Byzantine worker.
    """
    return equal_shares(updates) if weights is None else weights


def equal_shares(updates: Tensor) -> Tensor:
    """Return 1 / n for each update, (n,) float64."""
    return torch.full((len(updates),), 1 / len(updates), dtype=torch.float64)


# variant -> the ranks that are averaged.
MEDIAN_VARIANTS: dict[str, Callable[[int], tuple[int, int]]] = {
    "paper": lambda n: ((n - 1) // 2, n // 2 + 1),
    "lower": lambda n: ((n - 1) // 2, (n - 1) // 2 + 1),
}


def median(updates: Tensor, *, variant: str = "paper", weights: Tensor | None = None) -> Tensor:
    """Take each coordinate's median; for even n the mean of the two middle values.

    Parameters
    ----------
    variant
        "paper"; or "lower": the lower of two middle values (``torch.median``, ByzPy, FedML, Plato).
    weights
        Shares (n,) of the clients, adding up to 1: the value at half of the mass. It stays among
        the honest values while Byzantine clients hold less than half of the weight.

    References
    ----------
    Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, Definition 1.
    """
    ranks = chosen_variant(MEDIAN_VARIANTS, variant, "median")(len(updates))
    if weights is None:
        return ranked_mean(updates, *ranks)
    lower = variant == "lower"
    return by_blocks(updates, lambda block: weighted_median(block, weights, lower=lower))


# variant -> how many values nearest to the median are averaged; None: those of the middle ranks.
TRIMMED_VARIANTS: dict[str, Callable[[int, int], int] | None] = {
    "paper": None,
    "alie": lambda n, f: n - 2 * f,
    "alie_code": lambda n, f: n - f - 1,
}


def trimmed_mean(
    updates: Tensor, *, f: int, variant: str = "paper", weights: Tensor | None = None
) -> Tensor:
    """Drop the f largest and f smallest values of each coordinate, average the rest.

    Parameters
    ----------
    variant
        "paper"; or "alie": the n - 2 f values nearest to the median (TM(2) of Baruch et al. 2019).
        Their TM(1), the n - f nearest, is ``meamed``; "alie_code": n - f - 1, as in their program.
    weights
        Shares (n,) of the clients, adding up to 1: the mass of the f heaviest clients is cut off
        each end of a coordinate, the rest is averaged by weight. Whoever the f Byzantine clients
        are, what they hold beyond the honest values is cut.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, for an unknown variant, or if the f heaviest clients hold half of the
        weight or more.

    References
    ----------
    Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, Definition 2 (beta = f / n).
    """
    n = len(updates)
    nearest = chosen_variant(TRIMMED_VARIANTS, variant, "trimmed_mean")
    if weights is not None:
        if nearest is not None:
            raise SpecError(f"trimmed_mean with variant {variant!r} has no weighted form")
        cut = bearable(weights, f, "trimmed_mean")
        return by_blocks(updates, lambda block: weighted_ranks(block, weights, cut, 1 - cut))
    if nearest is not None:
        return nearest_to_median(updates, nearest(n, f))
    return ranked_mean(updates, f, n - f)


def nearest_mean(
    updates: Tensor, first: int, last: int, keep: int, *, rows: Tensor | None = None
) -> Tensor:
    """Average, per coordinate, the ``keep`` values nearest to the mean of ranks first..last-1.

    Parameters
    ----------
    rows
        Which updates take part, (m,), all unless given; of equally near values the earlier counts.
    """
    if kernels.fits(updates):
        taken = torch.arange(len(updates)) if rows is None else rows
        return kernels.nearest_mean(updates, taken, first, last, keep)

    def nearest(block: Tensor) -> Tensor:
        block = block if rows is None else block[rows]
        centre = _ranked_mean(block, first, last)
        if ordered_bits.pays(block):
            return ordered_bits.nearest_mean(block, centre, keep)
        order = (block - centre).abs().sort(dim=0, stable=True).indices[:keep]
        return averaged(block.gather(0, order))

    return by_blocks(updates, nearest)


def nearest_to_median(updates: Tensor, keep: int, *, rows: Tensor | None = None) -> Tensor:
    """Average, per coordinate, the ``keep`` values nearest to the median."""
    n = len(updates) if rows is None else len(rows)
    return nearest_mean(updates, *MEDIAN_VARIANTS["paper"](n), keep, rows=rows)


def meamed(updates: Tensor, *, f: int, variant: str = "paper") -> Tensor:
    """Average, per coordinate, the n - f values nearest to the median.

    Parameters
    ----------
    variant
        Around which median for even n: "paper", the mean of the two middle values, or "lower", the
        lower of them (``torch.median``, ByzPy).

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``, or for an unknown variant.

    References
    ----------
    Xie, Koyejo, Gupta, Generalized Byzantine-tolerant SGD, 2018, arXiv 1802.10116. TM(1) in Baruch
    et al., NeurIPS 2019.
    """
    n = len(updates)
    first, last = chosen_variant(MEDIAN_VARIANTS, variant, "meamed")(n)
    return nearest_mean(updates, first, last, n - f)


def phocas(updates: Tensor, *, f: int) -> Tensor:
    """Average, per coordinate, the n - f values nearest to the f-trimmed mean.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Xie, Koyejo, Gupta, Phocas, 2018, arXiv 1805.09682.
    """
    n = len(updates)
    return nearest_mean(updates, f, n - f, n - f)


def sign_sums(updates: Tensor) -> Tensor:
    """Sum the signs of each coordinate, (d,)."""
    found = known(updates)
    if found is not None and found.signs is not None:
        return found.signs
    if kernels.fits(updates):
        return reads.signs_and_largest(updates)[0]
    return by_blocks(updates, lambda block: block.sign().sum(0))


def sign_majority(updates: Tensor) -> Tensor:
    """Take each coordinate's majority sign, in {-1, 0, 1}; a tie is 0.

    References
    ----------
    Bernstein et al., signSGD with Majority Vote, ICLR 2019, Algorithm 1.
    """
    return sign_sums(updates).sign()
