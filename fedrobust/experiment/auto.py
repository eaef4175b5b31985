"""``attack = "auto"``: from one experiment to the runs that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fedrobust.attacks import settings, strength, threat_model
from fedrobust.attacks.members import SEES_ALL, check_level, level_of, members
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.simulation import stragglers
from fedrobust.spec import SpecError
from fedrobust.training.headline import ACCURACY, promised

Build = Callable[[Mapping[str, Any]], Experiment]


def expanded(document: Mapping[str, Any], build: Build) -> list[Experiment]:
    """Return the runs of one document: itself, or the members of ``auto`` that apply to it.

    Raises
    ------
    ConfigError
        Where ``auto`` has settings, no attackers, or attackers who know what they cannot know.
    """
    try:
        level = level_of(document.get("attack"))
    except SpecError as error:
        raise ConfigError([str(error)]) from error
    if level is None:
        return [build(document)]
    # Built without an attack: what it is, and who is asked in its rounds, decides which ones apply.
    plain = build({**document, "attack": "none"})
    try:
        check_level(level, plain.mode)
    except SpecError as error:
        raise ConfigError([str(error)]) from error
    if (shown := promised(plain.loss, plain.metrics)) != ACCURACY:
        raise ConfigError([f"attack 'auto' compares accuracies, this task has {shown.column}"])
    if not plain.byzantine:
        raise ConfigError(["attack 'auto' needs byzantine of at least 1, got 0"])
    return [build({**document, "attack": spec}) for spec in applicable(plain, level)]


def applicable(experiment: Experiment, level: str = SEES_ALL) -> list[dict[str, Any]]:
    """Return the members, of a level of knowledge, that can be computed in every round.

    ALIE's own z, for one, is not defined where half of those who are asked are Byzantine.
    """
    found = members(level, experiment.mode)
    if experiment.mode == "ensemble":
        return found
    counts = cohorts(experiment)
    return [spec for spec in found if all(_computes(spec, n, f) for n, f in counts)]


def _computes(spec: dict[str, Any], n: int, f: int) -> bool:
    try:
        settings(spec, n, f)
    except SpecError:
        return False
    return True


def cohorts(experiment: Experiment) -> Counter[tuple[int, int]]:
    """Count the rounds by (clients asked, Byzantine ones among them)."""
    n = stragglers.sample_size(experiment)
    if experiment.participation == 1:
        return Counter({(n, experiment.byzantine): experiment.rounds})
    found: Counter[tuple[int, int]] = Counter()
    for server_round in range(1, experiment.rounds + 1):
        bad = set(threat_model.members(experiment, round=server_round))
        asked = stragglers.participants(experiment, server_round)
        found[n, len(bad.intersection(asked))] += 1
    return found


def weakness(experiment: Experiment) -> str:
    """Say that an experiment's attack is none, or hardly one; empty where it is one.

    With sampled cohorts the most frequent number of attackers counts.
    """
    if experiment.mode == "ensemble" or experiment.attack["name"] == threat_model.NONE:
        return ""
    ((n, f), _), *_ = cohorts(experiment).most_common(1)
    return strength.weakness(experiment.attack, n=n, f=f)


def same_but_attack(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that runs of one ``auto`` share: all but attack and seed."""
    return {k: v for k, v in experiment.to_dict().items() if k not in ("attack", "seed")}
