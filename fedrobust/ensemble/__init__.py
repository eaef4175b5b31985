"""Nodes that train models of their own and vote at inference."""

from fedrobust.ensemble.members import Ensemble, answers
from fedrobust.ensemble.plan import nodes_of
from fedrobust.ensemble.shares import attacker_share, shares_of
from fedrobust.ensemble.votes import VOTES, combine, one_hot, scores

__all__ = [
    "VOTES",
    "Ensemble",
    "answers",
    "attacker_share",
    "combine",
    "nodes_of",
    "one_hot",
    "scores",
    "shares_of",
]
