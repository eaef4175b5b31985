"""What tables call each run: attack and defence, with the settings in which namesakes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy.rounds import shown


def names_of(experiments: Sequence[Experiment]) -> list[dict[str, str]]:
    """Return each run's ``attack`` and ``defence``, with the settings in which namesakes differ."""
    attacks = distinct([[e.attack, *shown(e)] for e in experiments])
    defences = distinct([e.stages for e in experiments])
    others = varied([_settings(e) for e in experiments])
    defences = [f"{d} [{o}]" if o else d for d, o in zip(defences, others, strict=True)]
    numbers = numbered(list(experiments), list(zip(attacks, defences, strict=True)))
    return [
        {"attack": a, "defence": d + n} for a, d, n in zip(attacks, defences, numbers, strict=True)
    ]


def numbered(experiments: list[Experiment], labels: list[tuple[str, str]]) -> list[str]:
    """Return " #2", " #3", ... for settings that no label tells apart; "" for the first of each.

    Without it the table would average different experiments as if they were seeds.
    """
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    numbers = []
    for experiment, label in zip(experiments, labels, strict=True):
        settings = {k: v for k, v in experiment.to_dict().items() if k != "seed"}
        known = seen.setdefault(label, [])
        if settings not in known:
            known.append(settings)
        place = known.index(settings)
        numbers.append(f" #{place + 1}" if place else "")
    return numbers


def varied(settings: list[dict[str, Any]]) -> list[str]:
    """Label each run by the settings in which the runs differ: ``server.lr=0.1``.

    Runs of another mode lack some settings: a setting is compared among the runs that have it.
    """
    every = dict.fromkeys(key for s in settings for key in s)
    having = {key: [s[key] for s in settings if key in s] for key in every}
    keys = [key for key, values in having.items() if any(v != values[0] for v in values)]
    return [", ".join(f"{k}={_short(s[k])}" for k in keys if k in s) for s in settings]


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Flatten everything but attack, defence and seed, one table deep."""
    flat: dict[str, Any] = {}
    for key, value in experiment.to_dict().items():
        if key in ("attack", "rule", "pre", "seed"):
            continue
        if key == "redundancy":  # name and detection are the defence's, the adversary the attack's
            value = {k: v for k, v in value.items() if k in ("replication", "tolerance", "window")}
        if experiment.mode == key == "ensemble":
            value = {k: v for k, v in value.items() if k != "paradigm"}  # it names the defence
        # A table with a name is a spec, and so one value; any other holds settings.
        nested = value if isinstance(value, dict) and "name" not in value else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): v for name, v in nested.items()}
    return flat


def _short(value: Any) -> str:
    """Write a value of a setting, of a spec in words; "none" for the empty spec."""
    if not isinstance(value, dict):
        return str(value)
    return spelt(value) if "name" in value else "none"


def spelt(*chain: dict[str, Any]) -> str:
    """Write specs with their settings: ``nnm f=4 + krum f=4``."""
    return " + ".join(
        " ".join([s["name"], *(f"{k}={v}" for k, v in s.items() if k != "name")]) for s in chain
    )


def distinct(chains: list[list[dict[str, Any]]]) -> list[str]:
    """Label chains of specs by their names, plus every setting in which namesakes differ."""
    namesakes: dict[tuple[str, ...], list[list[dict[str, Any]]]] = {}
    for chain in chains:
        namesakes.setdefault(tuple(spec["name"] for spec in chain), []).append(chain)

    def label(chain: list[dict[str, Any]]) -> str:
        group = namesakes[tuple(spec["name"] for spec in chain)]
        parts = []
        for place, spec in enumerate(chain):
            others = [other[place] for other in group]
            # No setting is equal to ``...``: one that a namesake lacks counts as different.
            varied = [k for k in spec if any(o.get(k, ...) != spec[k] for o in others)]
            parts.append(" ".join([spec["name"], *(f"{k}={spec[k]}" for k in varied)]))
        return "+".join(parts)

    return [label(chain) for chain in chains]
