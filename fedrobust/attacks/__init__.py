"""Attacks on updates, data poisoning, placement of the adversary, and what an attack achieved."""

from fedrobust.attacks.alie import support_probability, z_max
from fedrobust.attacks.backdoors import backdoor, stamp
from fedrobust.attacks.crafting import Attacker, build, craft, knowledge, settings, step
from fedrobust.attacks.data import (
    POISONS,
    alie_backdoor,
    backdoor_loss,
    delta_loss,
    label_flip,
    poison,
    sample_backdoor,
)
from fedrobust.attacks.impact import Impact, bypass, flippable, impact, spread
from fedrobust.attacks.placement import PLACEMENTS, place
from fedrobust.attacks.record import KNOWLEDGE, Attack, Crafted
from fedrobust.attacks.tables import ATTACKS, TRAINED, attack_record, installed

__all__ = [
    "ATTACKS",
    "KNOWLEDGE",
    "PLACEMENTS",
    "POISONS",
    "TRAINED",
    "Attack",
    "Attacker",
    "Crafted",
    "Impact",
    "alie_backdoor",
    "attack_record",
    "backdoor",
    "backdoor_loss",
    "build",
    "bypass",
    "craft",
    "delta_loss",
    "flippable",
    "impact",
    "installed",
    "knowledge",
    "label_flip",
    "place",
    "poison",
    "sample_backdoor",
    "settings",
    "spread",
    "stamp",
    "step",
    "support_probability",
    "z_max",
]
