"""Local training, large-batch steps, and what a gradient costs on the wire."""

from fedrobust.training.augment import AUGMENTATIONS
from fedrobust.training.cohort import Member, train_cohort
from fedrobust.training.compression import Quantized, levels_for, quantize
from fedrobust.training.lalr import SCHEDULES, LalrState, lalr_step, lr_at
from fedrobust.training.local import OPTIMIZERS, Recipe, one_thread, train_local

__all__ = [
    "AUGMENTATIONS",
    "OPTIMIZERS",
    "SCHEDULES",
    "LalrState",
    "Member",
    "Quantized",
    "Recipe",
    "lalr_step",
    "levels_for",
    "lr_at",
    "one_thread",
    "quantize",
    "train_cohort",
    "train_local",
]
