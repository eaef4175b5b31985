"""What a row of the board says in one number: over cells, and over the last rounds of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.board.protocol import BUDGETS

ON_GPU = {c.federation.name for b in BUDGETS.values() for c in b.cells if c.federation.gpu}
Row = dict[str, Any]


def stability(rows: Sequence[Row]) -> float:
    """Return the standard deviation of the last three accuracies: how much a round decides."""
    last = [row["accuracy"] for row in rows if "accuracy" in row][-3:]
    return statistics.pstdev(last) if last else 0.0


def score(cells: Sequence[Mapping[str, Any]]) -> Row:
    """Return the lowest accuracy under ``auto``: up to 20 % attackers, and over all cells.

    A cell that the rule refuses counts as 0: there it is no defence at all. Cells that take a GPU
    do not count, measured or not: a score is the same on every machine.
    """
    attacked = [c for c in cells if c["byzantine"] and counts(c)]
    upto = [c.get("auto", 0.0) for c in attacked if c["share"] <= 0.2]
    return {
        "worst": min(upto, default=None),
        "worst_anywhere": min((c.get("auto", 0.0) for c in attacked), default=None),
        "refused": sum("refused" in c for c in attacked),
    }


def counts(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is part of the score: every machine can measure it."""
    return cell["federation"] not in ON_GPU


def rounded(value: float) -> float:
    """Keep four places."""
    return round(value, 4)
