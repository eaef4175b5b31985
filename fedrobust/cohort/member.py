"""One client of a cohort."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.training.local import Draw, Recipe
from fedrobust.training.losses import Loss, cross_entropy


@dataclass(frozen=True)
class Member:
    """One client of a cohort; the fields are those of ``train_local``."""

    images: Tensor
    labels: Tensor
    recipe: Recipe
    generator: torch.Generator
    loss: Loss = cross_entropy
    out: Tensor | None = None
    draw: Draw | None = None
