"""Redundancy against Byzantine workers: assignments, agreement, detection, votes and codes."""

from fedrobust.redundancy.assignment import SCHEMES, Assignment, assign, permute

__all__ = ["SCHEMES", "Assignment", "assign", "permute"]
