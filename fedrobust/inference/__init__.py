"""Votes over the answers of several members: the public name of ``fedrobust.ensemble``'s votes."""

# A name of its own: who only votes need not know where the members are trained.
from fedrobust.ensemble.members import Ensemble, answers
from fedrobust.ensemble.votes import VOTES, combine, one_hot, scores

__all__ = ["VOTES", "Ensemble", "answers", "combine", "one_hot", "scores"]
