"""Local training, large-batch steps, and what a gradient costs on the wire."""

from fedrobust.experiment.schema import Recipe
from fedrobust.threads import one_thread
from fedrobust.training.augment import AUGMENTATIONS
from fedrobust.training.compression import Quantized, levels_for, quantize
from fedrobust.training.lalr import LalrState, lalr_step
from fedrobust.training.local import train_local
from fedrobust.training.losses import StackableLoss, cross_entropy, stackable
from fedrobust.training.optimizers import OPTIMIZERS, build_optimizer
from fedrobust.training.schedules import SCHEDULES, lr_at
from fedrobust.training.steps import SERVER_OPTIMIZERS, StepState, take_step
from fedrobust.training.tasks import METRICS, TASK_LOSSES, Metric
from fedrobust.training.update_codec import Codec

__all__ = [
    "AUGMENTATIONS",
    "METRICS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SERVER_OPTIMIZERS",
    "TASK_LOSSES",
    "Codec",
    "LalrState",
    "Metric",
    "Quantized",
    "Recipe",
    "StackableLoss",
    "StepState",
    "build_optimizer",
    "cross_entropy",
    "lalr_step",
    "levels_for",
    "lr_at",
    "one_thread",
    "quantize",
    "stackable",
    "take_step",
    "train_local",
]
