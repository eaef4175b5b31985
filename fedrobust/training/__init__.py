"""Local training, large-batch steps, and what a gradient costs on the wire."""

from fedrobust.training.compression import Quantized, quantize
from fedrobust.training.lalr import lalr_step
from fedrobust.training.local import OPTIMIZERS, Recipe, one_thread, train_local

__all__ = [
    "OPTIMIZERS",
    "Quantized",
    "Recipe",
    "lalr_step",
    "one_thread",
    "quantize",
    "train_local",
]
