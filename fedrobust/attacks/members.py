"""The members of ``attack = "auto"``: frozen, so that one name means one adversary.

A run is only as bad as the worst attack on it. ``auto`` runs every member as a whole run of its own
and takes the one that leaves least; it is at least as harmful as its fixed members by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedrobust.attacks.record import KNOWLEDGE
from fedrobust.attacks.tables import attack_record
from fedrobust.spec import SpecError, split, suggest

AUTO = "auto"
SEES_ALL = "omniscient"  # what ``auto`` knows unless it is told otherwise
KEY = "knowledge"
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

# Of an ensemble: what Byzantine members answer. The computed ones first, then each of the table.
SEARCHED_ANSWERS: tuple[dict[str, Any], ...] = ({"name": "best_vote"}, {"name": "runner_up"})
FIXED_ANSWERS: tuple[dict[str, Any], ...] = (
    {"name": "flip"},
    {"name": "random"},
    {"name": "nan"},
    {"name": "silence"},
    {"name": "garbage"},
    {"name": "stale"},
    {"name": "exception"},
)
ENSEMBLE, REDUNDANCY, FEDERATED = "ensemble", "redundancy", "federated"
# Mode -> what attackers may know. Every file worker holds the data: to know the own file's value
# alone, of which nothing has a spread, would be no attack.
LEVELS: dict[str, tuple[str, ...]] = {
    FEDERATED: KNOWLEDGE,
    REDUNDANCY: ("colluding", SEES_ALL),
    ENSEMBLE: (SEES_ALL,),
}

# Calls of the rule a round, by name: what a run of the member costs beside its training.
# drift_search asks along five directions, gradient_search along three; opt_alie on two sides.
QUESTIONS = {"gradient_search": 36, "drift_search": 52, "opt_alie": 40, "opt_ipm": 20}
COARSE = 12  # fewer without the refinements


def questions(spec: dict[str, Any]) -> int:
    """Return how often a member asks the rule in a round, about."""
    return QUESTIONS.get(spec["name"], 0) - (COARSE if spec.get("refinements") == 0 else 0)


def members(level: str = SEES_ALL, mode: str = FEDERATED) -> list[dict[str, Any]]:
    """Return the attacks that ``auto`` stands for, the searched ones first.

    Parameters
    ----------
    level
        What the attackers know: "omniscient"; "colluding", where each member works with the
        attackers' own honest updates; or "own", where each attacker is alone with its data.
    mode
        Of the experiment: an ensemble's members lie in answers, all others in updates or files.
    """
    if mode == ENSEMBLE:
        return [dict(spec) for spec in SEARCHED_ANSWERS + FIXED_ANSWERS]
    if level == SEES_ALL:
        return [dict(spec) for spec in SEARCHED + FIXED]
    return [
        # An attack that looks at nobody else's update is the same at every level.
        dict(spec) if attack_record(spec["name"]).knowledge == "own" else spec | {KEY: level}
        for spec in SEARCHED + FIXED
    ]


def check_level(level: str, mode: str) -> None:
    """Raise a SpecError where ``auto`` has no members of a level of knowledge in a mode."""
    allowed = LEVELS[mode]
    if level not in allowed:
        told = " or ".join(repr(name) for name in allowed)
        raise SpecError(f"attack 'auto' in {mode} mode needs {KEY} = {told}, got {level!r}")


def stand_for_auto(experiments: Iterable[Any]) -> bool:
    """Whether some experiments' attacks are all members of a mode and level, and so ``auto``."""
    attacks: dict[str, list[Any]] = {}
    for one in experiments:
        attacks.setdefault(one.mode, []).append(one.attack)
    return any(
        all(spec in found for spec in members(level, mode))
        for mode, found in attacks.items()
        for level in LEVELS[mode]
    )


def is_auto(spec: Any) -> bool:
    """Whether an attack's spec, in any notation, is ``auto``; raises as ``level_of``."""
    return level_of(spec) is not None


def level_of(spec: Any) -> str | None:
    """Return what the attackers of ``auto`` know; None where a spec is another attack's.

    Raises
    ------
    SpecError
        If it is ``auto`` and has other settings than ``knowledge``, or an unknown one.
    """
    name, _, text = spec.partition(":") if isinstance(spec, str) else (None, "", "")
    key, equals, value = text.partition("=")
    # Text after the colon is a setting, whatever it says.
    given: dict[str, Any] = {(key if equals else text): value} if text else {}
    if not isinstance(spec, str):
        try:
            name, given = split(spec)
        except SpecError:
            return None  # what is no spec at all has its own sentence
    if name != AUTO:
        return None
    if others := [f"{k}={v}" if equals else str(k) for k, v in given.items() if k != KEY]:
        raise SpecError(f"attack 'auto' has no parameters but {KEY}, got {', '.join(others)}")
    level = given.get(KEY, SEES_ALL)
    if level not in KNOWLEDGE:
        hint = suggest(str(level), list(KNOWLEDGE))
        raise SpecError(f"unknown {KEY} {level!r} of attack 'auto'; {hint}")
    return str(level)


def is_searched(spec: dict[str, Any]) -> bool:
    """Whether a member searches, or computes what harms most: it is no published attack."""
    plain = {k: v for k, v in spec.items() if k != KEY}
    return plain in SEARCHED or plain in SEARCHED_ANSWERS
