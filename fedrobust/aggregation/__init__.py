"""Aggregation rules and pre-aggregators: (n, d) -> (d,)."""

from fedrobust.aggregation.aggregator import Aggregator, aggregate, build, preaggregate
from fedrobust.aggregation.bounds import measured
from fedrobust.aggregation.client_weights import (
    WEIGHTINGS,
    Weighing,
    check_weights,
    resolve_weights,
    weighing,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.preconditions import (
    check,
    check_unaided,
    check_weighable,
    coefficient,
    tolerated,
)
from fedrobust.aggregation.record import PreAggregator, Rule
from fedrobust.aggregation.rehearsal import rehearse
from fedrobust.aggregation.tables import (
    PREAGGREGATORS,
    RULES,
    follows_rotation,
    installed,
    is_coordinate_wise,
    needs_own_data,
    preaggregator_record,
    rule_record,
)
from fedrobust.failures import Refusal

__all__ = [
    "PREAGGREGATORS",
    "RULES",
    "WEIGHTINGS",
    "Aggregator",
    "Outcome",
    "PreAggregator",
    "Refusal",
    "Rule",
    "Weighing",
    "aggregate",
    "build",
    "check",
    "check_unaided",
    "check_weighable",
    "check_weights",
    "coefficient",
    "follows_rotation",
    "installed",
    "is_coordinate_wise",
    "measured",
    "needs_own_data",
    "preaggregate",
    "preaggregator_record",
    "rehearse",
    "resolve_weights",
    "rule_record",
    "tolerated",
    "weighing",
]
