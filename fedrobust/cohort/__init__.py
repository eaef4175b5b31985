"""Many clients trained at once."""

from fedrobust.cohort.member import Member
from fedrobust.cohort.train import COHORTS, train_cohort, unstackable

__all__ = ["COHORTS", "Member", "train_cohort", "unstackable"]
