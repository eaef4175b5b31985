"""What an attack, and the rule that it asks, is told of the model that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fedrobust.aggregation import RULES, rule_record
from fedrobust.attacks.probe import Rule
from fedrobust.model_layers import Layers, checked_layers, checked_model
from fedrobust.spec import parameters, split

WHAT = {
    "layers": "the names and shapes of the model's tensors",
    "model": "the global model that updates are subtracted from",
}


def of_model(
    name: str, function: Callable[..., Any], layers: Any, model: Any, d: int
) -> dict[str, Any]:
    """Return what an attack asks of the model, checked; raises where it is needed and unknown."""
    wanted = parameters(function)
    given = {"layers": layers, "model": model}
    for key, value in given.items():
        if value is None and key in wanted and wanted[key].default is wanted[key].empty:
            raise ValueError(f"{name} needs {WHAT[key]}, which a run hands in: pass {key}=...")
    checks = {"layers": checked_layers, "model": checked_model}
    return {
        key: value if value is None or key not in wanted else checks[key](value, d, name)
        for key, value in given.items()
    }


def informed(rule: Rule | None, layers: Layers | None, model: Tensor | None) -> Rule | None:
    """Tell a rule that is a spec what it asks of the model, so that an attack can ask the rule."""
    if rule is None or callable(rule) or split(rule)[0] not in RULES:
        return rule
    spec, wanted = split(rule)[1], parameters(rule_record(split(rule)[0]).compute)
    given = {"layers": layers, "model": model}
    told = {key: value for key, value in given.items() if key in wanted and value is not None}
    return {"name": split(rule)[0], **told, **spec}
