"""Aggregation rules and pre-aggregators: (n, d) -> (d,)."""

from fedrobust.aggregation.aggregator import (
    Aggregator,
    Outcome,
    aggregate,
    build,
    check,
    preaggregate,
    tolerated,
)
from fedrobust.aggregation.tables import PREAGGREGATORS, RULES

__all__ = [
    "PREAGGREGATORS",
    "RULES",
    "Aggregator",
    "Outcome",
    "aggregate",
    "build",
    "check",
    "preaggregate",
    "tolerated",
]
