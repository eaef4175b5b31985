"""Aggregation rules and pre-aggregators: (n, d) -> (d,)."""

from fedrobust.aggregation.aggregator import (
    Aggregator,
    aggregate,
    build,
    check,
    preaggregate,
    tolerated,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.tables import NEEDS_OWN_DATA, PREAGGREGATORS, RULES

__all__ = [
    "NEEDS_OWN_DATA",
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
