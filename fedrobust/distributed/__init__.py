"""Distributed heterogeneous learning: who learns what, from which data, with which values."""

from fedrobust.distributed.plan import PARADIGMS, Node, Plan, Transfer, nodes_of
from fedrobust.distributed.shares import attacker_share, shares_of

__all__ = ["PARADIGMS", "Node", "Plan", "Transfer", "attacker_share", "nodes_of", "shares_of"]
