"""Clean and robust accuracy of a voting system and of its members, from their answers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedrobust.adversarial.evaluation import robustness
from fedrobust.ensemble.votes import combine
from fedrobust.spec import Spec

CLEAN = "clean"
Cells = dict[str, Any]


def measure(predicted: Mapping[str, Tensor], labels: Tensor) -> Cells:
    """Return clean accuracy, and per attack the robust accuracy, conditional and not.

    Parameters
    ----------
    predicted
        Predicted labels (B,) under "clean" and under each attack's name.
    labels
        True ones (B,).

    Returns
    -------
    dict
        ``{"clean": CA, attack: {"cond": RA over what was right when clean, "all": RA over all}}``,
        rounded to 6 digits; ``cond`` is None where nothing was right.
    """
    cells: Cells = {CLEAN: round(float((predicted[CLEAN] == labels).double().mean()), 6)}
    for attack, found in predicted.items():
        if attack != CLEAN:
            got = robustness(predicted[CLEAN], found, labels)
            share = None if math.isnan(got.conditional) else round(got.conditional, 6)
            cells[attack] = {"cond": share, "all": round(got.unconditional, 6)}
    return cells


def by_vote(answers: Mapping[str, Tensor], labels: Tensor, votes: Mapping[str, Spec]) -> Cells:
    """Return ``measure`` for each vote over the members' answers, name -> (members, B, C)."""
    return {
        name: measure({k: combine(rows, vote) for k, rows in answers.items()}, labels)
        for name, vote in votes.items()
    }


def by_member(answers: Mapping[str, Tensor], labels: Tensor) -> list[Cells]:
    """Return ``measure`` for each member alone, in the order of the rows."""
    # A member may have answered some of the queries only.
    count = min(len(rows) for rows in answers.values())
    return [
        measure({k: _top(rows[m]) for k, rows in answers.items()}, labels) for m in range(count)
    ]


def _top(rows: Tensor) -> Tensor:
    return torch.nan_to_num(rows, nan=-torch.inf).argmax(1)
