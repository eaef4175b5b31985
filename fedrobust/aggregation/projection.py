"""A random projection in front of a rule by distances."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fedrobust.aggregation import geometry, selection, spectral, subsets
from fedrobust.aggregation.columns import chosen_variant
from fedrobust.aggregation.record import majority
from fedrobust.ranges import whole
from fedrobust.seeds import generator as seeded
from fedrobust.spec import parameters
from fedrobust.threads import in_parts

TABLES = 2
Minimum = Callable[[dict[str, Any]], int]
INNER: dict[str, tuple[Callable[..., Tensor], Minimum]] = {
    "krum": (selection.krum_weights, selection.krum_minimum),
    "multi_krum": (selection.multi_krum_weights, selection.multi_krum_minimum),
    "mda": (subsets.mda_weights, majority),
    "smea": (subsets.smea_weights, majority),
    "caf": (spectral.caf_weights, majority),
    "geometric_median": (geometry.geometric_median_weights, majority),
}


def minimum(settings: dict[str, Any]) -> int:
    """Return the fewest updates of the inner rule."""
    inner = settings.get("inner", "krum")
    _, fewest = chosen_variant(INNER, inner, "projected's inner rule")
    return int(fewest({"f": settings["f"]}))


def projected_weights(
    updates: Tensor,
    *,
    f: int,
    inner: str = "krum",
    dimension: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Weigh the updates by a rule that sees a random projection of them; sum them themselves.

    Squared distances keep their size in the mean, and vary by about sqrt(1 / dimension). What is
    drawn follows from the server's secret: known buckets would let an attacker cancel its own
    deviation. Two coordinates that it hopes to cancel have to meet, with opposite signs, in each of
    two tables: once in 4 dimension^2 rounds. With 2 ``dimension`` coordinates or fewer nothing is
    projected.

    Parameters
    ----------
    inner
        A rule of ``INNER``, by its name; its other settings are its defaults.
    dimension
        Sums in each of the two tables, at least 1.
    generator
        For the projection; None draws from a fixed one.

    Raises
    ------
    ValueError
        For settings out of range, or fewer updates than the inner rule takes.

    References
    ----------
    Charikar, Chen, Farach-Colton, Finding Frequent Items in Data Streams, 2002 (count sketch);
    Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009, Lemma 2 (mean
    and variance). In front of a rule: this project's.
    """
    whole(dimension, "projected", "dimension", low=1)
    compute, _ = chosen_variant(INNER, inner, "projected's inner rule")
    source = seeded(0, "projected") if generator is None else generator
    # The geometric median takes none.
    given = {"f": f} if "f" in parameters(compute) else {}
    return compute(sketch(updates, dimension, source), **given)


def sketch(updates: Tensor, dimension: int, source: torch.Generator) -> Tensor:
    """Add each coordinate, with random signs, to a sum of each of ``TABLES`` tables.

    Parameters
    ----------
    dimension
        Sums of one table, k.

    Returns
    -------
    (n, TABLES k) float64, divided by sqrt(TABLES) so that lengths keep their size in the mean; the
    updates themselves where they are no longer than that.
    """
    n, d = updates.shape
    if d <= TABLES * dimension:
        return updates
    draw = partial(torch.randint, 0, generator=source, device=source.device)
    bucket = draw(dimension, (TABLES, d)).cpu()
    # The second table's sums stand behind the first's.
    bucket += dimension * torch.arange(TABLES)[:, None]
    sign = draw(2, (TABLES, d)).cpu() * 2 - 1
    sums = torch.zeros(n, TABLES * dimension, dtype=torch.float64)
    rows = updates.detach().cpu().contiguous().numpy()
    # 5 bytes for a coordinate instead of 16: both are as long as the model.
    places, signs = bucket.int().numpy(), sign.to(torch.int8).numpy()
    in_parts(_sketched, rows, places, signs, sums.numpy(), parts=n, work=TABLES * rows.size)
    return (sums / TABLES**0.5).to(updates.device)


@numba.njit(nogil=True, cache=True)
def _sketched(
    rows: np.ndarray, places: np.ndarray, signs: np.ndarray, out: np.ndarray, low: int, high: int
) -> None:  # pragma: no cover - compiled
    """Fill rows low..high-1 of ``out``: one row's sums stay in the cache."""
    for i in range(low, high):
        for table in range(len(places)):
            for k in range(rows.shape[1]):
                out[i, places[table, k]] += signs[table, k] * np.float64(rows[i, k])
