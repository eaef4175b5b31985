"""How much of a round was the attackers': known in simulation alone, and for the report alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import measured
from fedrobust.attacks import bypass, impact, spread
from fedrobust.attacks.impact import mean_of
from strategies.base import Row

FARTHEST = 1e9  # a deviation beyond this says nothing more, and has no place in a table


def honest_loss(
    clients: Sequence[int], replies: Sequence[Any], bad: Collection[int]
) -> float | None:
    """Return the mean training loss that the honest clients report; None without any."""
    losses = [
        reply.loss for client, reply in zip(clients, replies, strict=True) if client not in bad
    ]
    return round(sum(losses) / len(losses), 6) if losses else None


def impact_row(
    clients: Sequence[int],
    bad: Collection[int],
    updates: Tensor,
    aggregate: Tensor,
    weights: Tensor | None = None,
) -> Row:
    """Say who was Byzantine and how far they got; nothing where nobody was.

    Parameters
    ----------
    clients, updates
        Whose the rows (n, d) are.
    aggregate
        What the server steps with, (d,).
    weights
        How much each row counted, (n,); None where a rule has no weights.
    """
    if not bad:
        return {}
    malicious = torch.tensor([client in bad for client in clients], dtype=torch.bool)
    row: Row = {"byzantine": sorted(bad)}
    if weights is not None:
        row["bypass"] = bypass(weights, malicious)
    # Where all are Byzantine there is no honest mean to be away from.
    if not bool(malicious.all()):
        row["impact"] = _impact_of(aggregate, updates, (~malicious).nonzero().flatten())
    return row


def kappa_row(
    clients: Sequence[int], bad: Collection[int], updates: Tensor, aggregate: Tensor
) -> Row:
    """Say which robustness coefficient the round had, as ``fedrobust.aggregation.measured``.

    Nothing where no honest client was heard.

    Parameters
    ----------
    clients, updates, aggregate
        As for ``impact_row``.
    bad
        All Byzantine clients: the others count as honest.
    """
    honest = torch.tensor([client not in bad for client in clients], dtype=torch.bool)
    if not bool(honest.any()):
        return {}
    # By their places: picked rows would be a second (n, d) matrix.
    rows = None if bool(honest.all()) else honest.nonzero().flatten()
    return {"kappa": round(min(measured(aggregate, updates, rows=rows), FARTHEST), 9)}


def _impact_of(aggregate: Tensor, updates: Tensor, honest: Tensor) -> dict[str, float]:
    """How far the aggregate is from the honest mean, in honest spreads, and its direction."""
    found = impact(aggregate, mean_of(updates, honest), spread=spread(updates, honest))
    return {
        "deviation": round(min(found.deviation, FARTHEST), 6),
        "cosine": round(found.cosine, 6),
    }
