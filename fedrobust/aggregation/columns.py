"""Coordinate-wise rules: each coordinate is sorted over the clients, by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedrobust.aggregation.kernels import fits, rank_mean

BLOCK = 1 << 22  # values per block: sorted copies stay in the cache's reach, memory stays flat


def by_blocks(updates: Tensor, column_rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``(n, b) -> (b,)`` to blocks of columns."""
    return torch.cat([column_rule(block) for block in blocks(updates)])


def blocks(updates: Tensor) -> Iterator[Tensor]:
    """Yield views of some columns at a time."""
    yield from updates.split(max(1, BLOCK // len(updates)), dim=1)


def ranked_mean(updates: Tensor, first: int, last: int) -> Tensor:
    """Average the values of ranks first..last-1 of each column."""
    if last <= first:
        raise ValueError(
            f"no rank is left of {len(updates)} values after cutting {first} each side"
        )
    if fits(updates):
        return rank_mean(updates, first, last)
    scale = 1 / (last - first)  # before the sum: huge values may not overflow it
    return by_blocks(updates, lambda b: (b.sort(0).values[first:last] * scale).sum(0))


def mean(updates: Tensor) -> Tensor:
    """Average the updates; one attacker moves it anywhere.

    References
    ----------
    Blanchard et al., NeurIPS 2017, Lemma 1: no linear rule tolerates one Byzantine worker.
    """
    return updates.mean(0)


def median(updates: Tensor) -> Tensor:
    """Take each coordinate's median; for even n the mean of the two middle values.

    References
    ----------
    Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, Definition 1.
    """
    n = len(updates)
    return ranked_mean(updates, (n - 1) // 2, n // 2 + 1)


def trimmed_mean(updates: Tensor, *, f: int) -> Tensor:
    """Drop the f largest and f smallest values of each coordinate, average the rest.

    Raises
    ------
    ValueError
        If ``n < 2 f + 1``.

    References
    ----------
    Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, Definition 2 (beta = f / n).
    """
    return ranked_mean(updates, f, len(updates) - f)


def nearest_mean(updates: Tensor, centre: Tensor, keep: int) -> Tensor:
    """Average, per coordinate, the ``keep`` values nearest to the centre (lowest index on ties)."""
    order = (updates - centre).abs().sort(dim=0, stable=True).indices[:keep]
    return updates.gather(0, order).mean(0)


def meamed(updates: Tensor, *, f: int) -> Tensor:
    """Average, per coordinate, the n - f values nearest to the median.

    References
    ----------
    Xie, Koyejo, Gupta, Generalized Byzantine-tolerant SGD, 2018, arXiv 1802.10116.
    """
    keep = len(updates) - f
    return by_blocks(updates, lambda block: nearest_mean(block, median(block), keep))


def phocas(updates: Tensor, *, f: int) -> Tensor:
    """Average, per coordinate, the n - f values nearest to the f-trimmed mean.

    References
    ----------
    Xie, Koyejo, Gupta, Phocas, 2018, arXiv 1805.09682.
    """
    keep = len(updates) - f
    return by_blocks(updates, lambda block: nearest_mean(block, trimmed_mean(block, f=f), keep))


def sign_majority(updates: Tensor) -> Tensor:
    """Take each coordinate's majority sign, in {-1, 0, 1}; a tie is 0.

    References
    ----------
    Bernstein et al., signSGD with Majority Vote, ICLR 2019, Algorithm 1.
    """
    return updates.sign().sum(0).sign()
