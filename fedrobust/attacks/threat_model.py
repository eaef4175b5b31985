"""The adversary of an experiment: which attack, on what, knowing what.

An attack's kind follows from its name alone: none; a model attack (``ATTACKS``), one that trains a
model of its own (``TRAINED``), a data attack (``POISONS``), or a fault (``FAULTS``) of the reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrobust import attacks
from fedrobust.attacks import ATTACKS, POISONS, TRAINED, attack_record, place
from fedrobust.attacks.alie_backdoor import TRAINED_SUPPLIED
from fedrobust.attacks.backdoors import trigger_target
from fedrobust.attacks.data import POISON_SUPPLIED, boosted
from fedrobust.attacks.members import AUTO
from fedrobust.attacks.poison_checks import check_poison, settings_of
from fedrobust.redundancy import rounds
from fedrobust.spec import SpecError, resolve, split, suggest

NONE = "none"

# Faults of the reply, with one line each; the malicious client commits them.
FAULTS = {
    "missing_key": "the reply holds no update",
    "extra_key": "the reply holds a key that nobody asked for",
    "wrong_shape": "the update has one coordinate too many",
    "wrong_dtype": "the update is float64",
    "oversized": "the update is twice as long",
    "nan_value": "one coordinate is NaN",
    "inf_value": "one coordinate is infinite",
    "huge": "every coordinate is 1e30",
    "many_examples": "num-examples claims 1e9",
    "negative_examples": "num-examples claims -14",
    "garbage": "the array's bytes are not the array that its header declares",
    "exception": "the client raises",
    "silence": "the client never answers",
}

# What a Byzantine member of an ensemble does with its answers to queries; the member commits them.
ANSWERS = {
    "flip": "the class after the predicted one, with full confidence, the same for all",
    "random": "random labels or probabilities",
    "runner_up": "the second class of its own prediction, with full confidence",
    "best_vote": "the vote that does most harm, of colluders who know all answers and the truth",
    "nan": "every value is NaN",
    "silence": "the member never answers",
    "garbage": "the array's bytes are not the array that its header declares",
    "stale": "the answer names the query before",
    "exception": "the member raises",
}
COLLUDING = ("best_vote",)  # answers that take a side channel between the members


def kind(name: str) -> str:
    """Return "none", "craft", "trained", "poison", "fault", or "answer" for ensembles alone."""
    tables: dict[str, Mapping[str, Any]] = {
        NONE: {NONE: None},
        "craft": ATTACKS,
        "trained": TRAINED,
        "poison": POISONS,
        "fault": FAULTS,
        "answer": ANSWERS,
    }
    for label, table in tables.items():
        if name in table:
            return label
    if name == AUTO:
        raise SpecError(
            "attack 'auto' stands for many runs: use it with fedrobust run, sweep or simulate"
        )
    allowed = [AUTO, *(known for table in tables.values() for known in table)]
    raise SpecError(f"unknown attack {name!r}; {suggest(name, allowed)}")


def knowledge(spec: Mapping[str, Any]) -> str:
    """Return what the attacker sees: its spec's ``knowledge``, or the attack's own default."""
    _, level = attacks.knowledge(spec)
    return level or attack_record(split(spec)[0]).knowledge


def check(spec: Mapping[str, Any], *, n: int, f: int) -> None:
    """Check an attack's name, parameters and knowledge level.

    Raises
    ------
    SpecError
        With what is wrong and what is allowed.
    """
    name, settings = split(spec)
    label = kind(name)
    if label == "craft":
        attacks.settings(spec, n, f)
    elif label == "trained":
        plain, _ = attacks.knowledge(spec)
        resolve(TRAINED, plain, kind="attack", supplied=TRAINED_SUPPLIED)
        check_poison(plain)
    elif label == "poison":
        plain, _ = boosted(spec)
        resolve(POISONS, plain, kind="attack", supplied=POISON_SUPPLIED)
        check_poison(plain)
    elif label == "answer":
        raise SpecError(f"attack {name!r} changes the answers of members: it needs [ensemble]")
    elif settings:
        raise SpecError(f"attack {name!r} has no parameters, got {', '.join(settings)}")


def measured_on(spec: Mapping[str, Any]) -> str:
    """Return on which images a planted pattern's success is measured: "held_out" or "train"."""
    return split(spec)[1].get("measured_on", "held_out")


def patterns(spec: Mapping[str, Any], classes: int) -> list[dict[str, Any]]:
    """Return target, size, value and corner of each pattern that an attack plants."""
    name, given = split(spec)
    if name not in ("backdoor", "distributed_backdoor", "alie_backdoor", "many_triggers"):
        return []
    shown: dict[str, Any] = {k: given[k] for k in ("target", "size", "value") if k in given}
    if name != "many_triggers":
        return [shown]
    own = settings_of(POISONS[name]) | given
    shown = {"size": own["size"], "value": own["value"]}
    return [
        {**shown, "target": trigger_target(own["target"], j, classes), "corner": j}
        for j in range(own["triggers"])
    ]


def tail(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return source, target and tail of an attack on the rare images of a class; None of others."""
    name, given = split(spec)
    if name != "edge_case":
        return None
    own = settings_of(POISONS[name]) | given
    return {key: own[key] for key in ("source", "target", "tail")}


def members(experiment: Any, *, round: int = 0) -> tuple[int, ...]:
    """Return the Byzantine clients of a round; none where there is no attack."""
    if experiment.attack["name"] == NONE:
        return ()
    # The schemes' adversary chooses by the assignment, not by a draw.
    if experiment.redundancy.name and (chosen := rounds.chosen_byzantine(experiment)) is not None:
        return chosen
    return tuple(
        place(
            experiment.placement,
            clients=experiment.clients,
            byzantine=experiment.byzantine,
            seed=experiment.seed,
            round=round,
        )
    )
