"""Many clients trained at once."""

from fedrobust.cohort.train import COHORTS, Member, train_cohort, unstackable

__all__ = ["COHORTS", "Member", "train_cohort", "unstackable"]
