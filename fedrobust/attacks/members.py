"""The members of ``attack = "auto"``: frozen, so that one name means one adversary.

A run is only as bad as the worst attack on it. ``auto`` runs every member as a whole run of its own
and takes the one that leaves least; it is at least as harmful as its fixed members by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedrobust.spec import SpecError, split

AUTO = "auto"
VERSION = 1  # of the list below: a result names it

SEARCHED: tuple[dict[str, Any], ...] = (
    {"name": "gradient_search"},
    {"name": "gradient_search", "refinements": 0},
    {"name": "drift_search"},
    {"name": "gradient_shift"},
)
FIXED: tuple[dict[str, Any], ...] = (
    {"name": "sign_flip"},
    {"name": "sign_flip", "scale": 4.0},
    {"name": "alie", "knowledge": "omniscient"},
    {"name": "alie", "z": 1.5, "knowledge": "omniscient"},
    {"name": "ipm", "epsilon": 0.5},
    {"name": "min_max"},
    {"name": "min_sum"},
    {"name": "mimic"},
    {"name": "rop"},
    {"name": "seesaw"},
    {"name": "opt_alie"},
    {"name": "opt_ipm"},
)

# Calls of the rule a round, by name: what a run of the member costs beside its training.
# drift_search asks along five directions, gradient_search along three; opt_alie on two sides.
QUESTIONS = {"gradient_search": 36, "drift_search": 52, "opt_alie": 40, "opt_ipm": 20}
COARSE = 12  # fewer without the refinements


def questions(spec: dict[str, Any]) -> int:
    """Return how often a member asks the rule in a round, about."""
    return QUESTIONS.get(spec["name"], 0) - (COARSE if spec.get("refinements") == 0 else 0)


def members() -> list[dict[str, Any]]:
    """Return the attacks that ``auto`` stands for, the searched ones first."""
    return [dict(spec) for spec in SEARCHED + FIXED]


def members_among(experiments: Iterable[Any]) -> int:
    """Return how many different members the attacks of some experiments are."""
    attacks = [experiment.attack for experiment in experiments]
    return sum(spec in attacks for spec in members())


def is_auto(spec: Any) -> bool:
    """Whether an attack's spec, in any notation, is ``auto``.

    Raises
    ------
    SpecError
        If it is, and has settings.
    """
    name, _, text = spec.partition(":") if isinstance(spec, str) else (None, "", "")
    # Text after the colon is a setting, whatever it says; it is refused below, not parsed.
    given: dict[str, Any] = {text: ""} if text else {}
    if not isinstance(spec, str):
        try:
            name, given = split(spec)
        except SpecError:
            return False  # what is no spec at all has its own sentence
    if name != AUTO:
        return False
    if given:
        raise SpecError(f"attack 'auto' has no parameters, got {', '.join(given)}")
    return True


def is_searched(spec: dict[str, Any]) -> bool:
    """Whether a member searches or looks through momentum: it is no published attack."""
    return spec in SEARCHED
