"""Every table of plug-ins, read off its functions' own docstrings; ``listing`` keeps the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedrobust import adversarial, aggregation, attacks, data, ensemble, models, redundancy
from fedrobust.attacks import alie_backdoor, threat_model
from fedrobust.spec import parameters

Entry = dict[str, str]
# What the system hands in: no setting of the plug-in, so nothing to list. f is one, of the rules.
SUPPLIED = {
    "rules": {"generator", "memory", "clients"},
    "pre-aggregators": {"generator"},
    "attacks": set(attacks.crafting.SUPPLIED),
    "training attacks": set(alie_backdoor.TRAINED_SUPPLIED),
    "data attacks": set(threat_model.POISON_SUPPLIED),
    "placements": {"clients", "byzantine", "seed", "round"},
    "partitions": {"clients", "seed"},
}


def tables() -> dict[str, list[Entry]]:
    """Return kind -> entries with name, what, parameters, paper."""
    every: dict[str, Mapping[str, Callable[..., Any]]] = {
        "rules": aggregation.RULES,
        "pre-aggregators": aggregation.PREAGGREGATORS,
        "attacks": attacks.ATTACKS,
        "training attacks": alie_backdoor.TRAINED,
        "data attacks": attacks.POISONS,
        "placements": attacks.PLACEMENTS,
        "redundancy schemes": redundancy.SCHEMES,
        "redundancy adversaries": redundancy.ADVERSARIES,
        "perturbations": adversarial.PERTURBATIONS,
        "transfer attacks": adversarial.TRANSFER_ATTACKS,
        "losses": adversarial.LOSSES,
        "votes": ensemble.VOTES,
        "partitions": data.PARTITIONERS,
        "data sets": data.DATASETS,
        "models": models.MODELS,
    }
    result = {
        title: [entry(n, f, SUPPLIED.get(title, set())) for n, f in table.items()]
        for title, table in every.items()
    }
    result["faults"] = [_line(name, what) for name, what in threat_model.FAULTS.items()]
    return result


def entry(name: str, function: Callable[..., Any], supplied: set[str]) -> Entry:
    """Describe one plug-in from its signature and docstring."""
    text = inspect.getdoc(function) or ""
    settings = [
        key if p.default is inspect.Parameter.empty else f"{key}={p.default!r}"
        for key, p in parameters(function).items()
        if key not in supplied
    ]
    return {
        "name": name,
        "what": text.split("\n\n")[0].replace("\n", " ").strip(),
        "parameters": ", ".join(settings),
        "paper": paper(text),
    }


def paper(text: str) -> str:
    """Return the References section of a numpydoc docstring on one line."""
    lines = text.splitlines()
    if "References" not in lines:
        return ""
    start = lines.index("References") + 2
    taken: list[str] = []
    for line in lines[start:]:
        if set(line.strip()) == {"-"} and line.strip():
            taken.pop()
            break
        taken.append(line.strip())
    return " ".join(part for part in taken if part)


def _line(name: str, what: str) -> Entry:
    return {"name": name, "what": what, "parameters": "", "paper": ""}
