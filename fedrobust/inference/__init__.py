"""Distributed inference: members answer a query, a vote combines their answers."""

from fedrobust.inference.ensemble import Ensemble, answers
from fedrobust.inference.votes import VOTES, combine, one_hot, scores

__all__ = ["VOTES", "Ensemble", "answers", "combine", "one_hot", "scores"]
