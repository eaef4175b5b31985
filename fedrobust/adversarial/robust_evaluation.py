"""The robust part of a round's row: accuracy under chosen attacks, and the alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.adversarial.apgd import apgd_both
from fedrobust.adversarial.evaluation import (
    Robustness,
    auto_attack,
    masking_alarms,
    predicted_under,
    robustness,
    worst_of,
)
from fedrobust.adversarial.frozen import Model, predict
from fedrobust.adversarial.images import as_images
from fedrobust.adversarial.square import square
from fedrobust.spec import Spec, suggest

EVALUATIONS = ("pgd", "fgsm", "margin", "apgd", "square", "autoattack")
GATHERED: dict[str, Callable[..., Tensor]] = {"apgd": apgd_both, "square": square}
BATCH = 256  # images at once
TOLERANCE = 0.01  # differences of a percent are noise; ours


def evaluation_names(text: str) -> list[str]:
    """Split "fgsm+pgd" into names of ``EVALUATIONS``, in the table's order.

    Raises
    ------
    ValueError
        If a name is unknown, or none is given.
    """
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in EVALUATIONS:
            raise ValueError(f"unknown evaluation {name!r}; {suggest(name, list(EVALUATIONS))}")
    return [name for name in EVALUATIONS if name in names]


def examine(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    restarts: int = 1,
    attacks: str = "pgd",
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Measure a model under L-infinity attacks of one radius.

    Parameters
    ----------
    model, x, y
        Images (N, ...) in [0, 1] and labels (N,); the model is left as found.
    eps, steps, restarts
        Radius; steps of eps / 4 and runs per image of PGD and of PGD on the margin.
    attacks
        Names of ``EVALUATIONS``, joined by "+". "apgd": Auto-PGD on the cross-entropy and, for what
        is left, towards the nine likeliest classes, 100 steps each; "square": 1,000 queries. With
        "fgsm+pgd+apgd+square" masked gradients show in the alarms.
    generator
        Draws the random starts.

    Returns
    -------
    dict
        "robust_accuracy" (PGD), "fgsm_accuracy", "apgd_accuracy" and so on, those that were asked
        for, in [0, 1]; with several of them "worst_accuracy", an image counting as
        right if none of them fooled the model; and "alarms", sentences, if an order of attacks
        is contradicted: see ``masking_alarms``.

    Raises
    ------
    ValueError
        If a name is unknown or the images leave [0, 1].
    ImportError
        If AutoAttack is asked for and not installed.
    """
    names = evaluation_names(attacks)
    climb: dict[str, Any] = {"name": "pgd", "eps": eps, "step_size": eps / 4, "steps": steps}
    climb |= {"restarts": restarts}
    table: dict[str, Spec] = {
        "pgd": climb,
        "fgsm": {"name": "fgsm", "eps": eps, "random_start": False},
        "margin": {**climb, "loss": "margin"},
    }
    chosen = {name: table[name] for name in names if name in table}
    clean = predict(model, as_images(x, y))
    labels = predicted_under(model, x, y, attacks=chosen, generator=generator)
    images, batches = as_images(x, y), range(0, len(y), BATCH)
    for name in (name for name in names if name in GATHERED):
        parts = [GATHERED[name](model, images[i : i + BATCH], y[i : i + BATCH], eps=eps,
                                generator=generator) for i in batches]  # fmt: skip
        labels[name] = predict(model, torch.cat(parts))
    if "autoattack" in names:
        labels["autoattack"] = predict(model, auto_attack(model, x, y, eps=eps))
    found = {name: robustness(clean, each, y) for name, each in labels.items()}
    row: dict[str, Any] = {_key(name): found[name].unconditional for name in names}
    if len(names) > 1:
        # Image by image: two attacks that fool different images are together worse than either.
        worst = worst_of(clean, labels.values(), y)
        row["worst_accuracy"] = robustness(clean, worst, y).unconditional
    if alarms := _alarms(found, row):
        row["alarms"] = alarms
    return row


def _key(name: str) -> str:
    return "robust_accuracy" if name == "pgd" else f"{name}_accuracy"


def _alarms(found: dict[str, Robustness], row: dict[str, Any]) -> list[str]:
    # Every order that is checked has the many steps of PGD on one side.
    if "robust_accuracy" not in row:
        return []
    strong = [row[key] for key in ("apgd_accuracy", "autoattack_accuracy") if key in row]
    return list(
        masking_alarms(
            clean=found["pgd"].clean,
            one_step=row.get("fgsm_accuracy"),
            many_steps=row["robust_accuracy"],
            queries=row.get("square_accuracy"),
            stronger=max(strong, default=None),
            tolerance=TOLERANCE,
        )
    )
