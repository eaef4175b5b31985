"""Attacks on updates, data poisoning, placement of the adversary, and what an attack achieved."""

from fedrobust.attacks.alie import support_probability, z_max
from fedrobust.attacks.crafting import ATTACKS, KNOWLEDGE, craft, knowledge, settings

__all__ = [
    "ATTACKS",
    "KNOWLEDGE",
    "craft",
    "knowledge",
    "settings",
    "support_probability",
    "z_max",
]
