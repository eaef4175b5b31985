"""Every table of plug-ins, read off its functions' own docstrings; ``listing`` keeps the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedrobust import (
    adversarial,
    aggregation,
    attacks,
    data,
    ensemble,
    models,
    redundancy,
    training,
)
from fedrobust.aggregation.record import FROM_RUN
from fedrobust.attacks import threat_model
from fedrobust.attacks.alie_backdoor import TRAINED_SUPPLIED
from fedrobust.docstrings import paper, summary
from fedrobust.spec import parameters

Entry = dict[str, str]
# What the system hands in: no setting of the plug-in, so nothing to list. f is one, of the rules.
SUPPLIED = {
    "rules": {"generator", "memory", "clients", "weights", *FROM_RUN},
    "pre-aggregators": {"generator", "weights"},
    "client weights": {"clients", "claims"},
    "attacks": set(attacks.crafting.SUPPLIED),
    "training attacks": set(TRAINED_SUPPLIED),
    "data attacks": set(threat_model.POISON_SUPPLIED),
    "placements": {"clients", "byzantine", "seed", "round"},
    "partitions": {"clients", "seed", "owners"},
}


def tables() -> dict[str, list[Entry]]:
    """Return kind -> entries with name, what, parameters, paper."""
    every: dict[str, Mapping[str, Callable[..., Any]]] = {
        "rules": aggregation.RULES,
        "pre-aggregators": aggregation.PREAGGREGATORS,
        "client weights": aggregation.WEIGHTINGS,
        "attacks": attacks.ATTACKS,
        "training attacks": attacks.TRAINED,
        "data attacks": attacks.POISONS,
        "placements": attacks.PLACEMENTS,
        "redundancy schemes": redundancy.SCHEMES,
        "redundancy adversaries": redundancy.ADVERSARIES,
        "perturbations": adversarial.PERTURBATIONS,
        "transfer attacks": adversarial.TRANSFER_ATTACKS,
        "losses": adversarial.LOSSES,
        "votes": ensemble.VOTES,
        "task losses": training.TASK_LOSSES,
        "metrics": {name: metric.compute for name, metric in training.METRICS.items()},
        "partitions": data.PARTITIONERS,
        "data sets": data.DATASETS,
        "models": models.MODELS,
    }
    result = {
        title: [entry(n, f, SUPPLIED.get(title, set())) for n, f in table.items()]
        for title, table in every.items()
    }
    for line in result["rules"] + result["pre-aggregators"]:
        line["what"] += _published(line["name"])
    result["faults"] = [_line(name, what) for name, what in threat_model.FAULTS.items()]
    return result


def entry(name: str, function: Callable[..., Any], supplied: set[str]) -> Entry:
    """Describe one plug-in from its signature and docstring."""
    settings = [
        key if p.default is inspect.Parameter.empty else f"{key}={p.default!r}"
        for key, p in parameters(function).items()
        if key not in supplied
    ]
    return {
        "name": name,
        "what": summary(function),
        "parameters": ", ".join(settings),
        "paper": paper(function),
    }


def _published(name: str) -> str:
    """Say what is published of a plug-in's robustness, at n = 20 and f = 4."""
    if name in aggregation.PREAGGREGATORS:
        known = aggregation.preaggregator_record(name).kappa
        return "" if known is None else " (f, kappa)-robust behind it: 8 f / (n - f) (kappa + 1)."
    kappa = aggregation.rule_record(name).kappa
    return "" if kappa is None else f" (f, kappa)-robust; kappa = {kappa(20, 4):.3g} at n=20, f=4."


def _line(name: str, what: str) -> Entry:
    return {"name": name, "what": what, "parameters": "", "paper": ""}
