"""Every table of plug-ins, read off its functions' own docstrings; ``listing`` keeps the result."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
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
FORMULAS = Path(__file__).parent / "docs" / "formulas.toml"
KNOWLEDGE = {
    "own": "what the client itself would send",
    "colluding": "what the attackers would send",
    "omniscient": "all honest updates",
}
MOST = 64  # updates tried when looking for the fewest that a rule takes
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
    """Return kind -> entries with name, what, parameters, paper; of some also needs and bears.

    ``needs`` is the fewest updates of a rule; ``bears`` is what it survives, as
    ``experiments/docs/formulas.toml`` has it beside the formula; ``sees`` is what an attack must.
    """
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
    written = tomllib.loads(FORMULAS.read_text(encoding="utf-8"))
    for kind in ("rules", "pre-aggregators"):
        for line in result[kind]:
            line["what"] += _published(line["name"])
            line["needs"] = needs(line["name"], kind)
            line["bears"] = written.get(line["name"], {}).get("breakdown", "")
    for line in result["attacks"]:
        line["sees"] = _sees(attacks.attack_record(line["name"]))
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


def needs(name: str, kind: str) -> str:
    """Say how many updates a rule needs, found by asking the rule's own check."""
    fewest = [_fewest(name, kind, f) for f in (1, 2)]
    if None in fewest or fewest[0] == fewest[1]:
        return f"at least {fewest[0]} update(s)" if fewest[0] else "see its settings"
    # Two values of f are enough: what rules ask for is linear in it.
    slope = fewest[1] - fewest[0]  # type: ignore[operator]
    return f"n >= {slope} f + {fewest[0] - slope}"  # type: ignore[operator]


def _fewest(name: str, kind: str, f: int) -> int | None:
    spec: dict[str, Any] = {"name": name}
    rule = kind == "rules"
    record = aggregation.rule_record(name) if rule else aggregation.preaggregator_record(name)
    for key, parameter in parameters(record.compute).items():
        if parameter.default is inspect.Parameter.empty and key not in SUPPLIED[kind]:
            spec[key] = f if key == "f" else 1
    for n in range(1, MOST):
        with suppress(ValueError):
            aggregation.check(spec if rule else "mean", n=n, pre=() if rule else [spec])
            return n
    return None


def _sees(record: attacks.Attack) -> str:
    """Say what an attack must see, and whether it remembers."""
    told = [KNOWLEDGE[record.knowledge]]
    told += ["asks the rule"] if record.asks_the_rule else []
    told += ["remembers"] if record.remembers else []
    told += ["trains a model"] if record.trains else []
    return ", ".join(told)


def _published(name: str) -> str:
    """Say what is published of a plug-in's robustness, at n = 20 and f = 4."""
    if name in aggregation.PREAGGREGATORS:
        known = aggregation.preaggregator_record(name).kappa
        return "" if known is None else " (f, kappa)-robust behind it: 8 f / (n - f) (kappa + 1)."
    kappa = aggregation.rule_record(name).kappa
    return "" if kappa is None else f" (f, kappa)-robust; kappa = {kappa(20, 4):.3g} at n=20, f=4."


def _line(name: str, what: str) -> Entry:
    return {"name": name, "what": what, "parameters": "", "paper": ""}
