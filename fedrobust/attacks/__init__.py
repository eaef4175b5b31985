"""Attacks on updates, data poisoning, placement of the adversary, and what an attack achieved."""

from fedrobust.attacks.alie import support_probability, z_max
from fedrobust.attacks.crafting import ATTACKS, KNOWLEDGE, craft, knowledge, settings
from fedrobust.attacks.data import (
    POISONS,
    alie_backdoor,
    backdoor,
    backdoor_loss,
    delta_loss,
    label_flip,
    poison,
    sample_backdoor,
    stamp,
)
from fedrobust.attacks.impact import Impact, bypass, flippable, impact, spread
from fedrobust.attacks.placement import PLACEMENTS, place

__all__ = [
    "ATTACKS",
    "KNOWLEDGE",
    "PLACEMENTS",
    "POISONS",
    "Impact",
    "alie_backdoor",
    "backdoor",
    "backdoor_loss",
    "bypass",
    "craft",
    "delta_loss",
    "flippable",
    "impact",
    "knowledge",
    "label_flip",
    "place",
    "poison",
    "sample_backdoor",
    "settings",
    "spread",
    "stamp",
    "support_probability",
    "z_max",
]
