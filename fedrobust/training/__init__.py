"""Local training: what one client does in one round."""

from fedrobust.training.local import OPTIMIZERS, Recipe, one_thread, train_local

__all__ = ["OPTIMIZERS", "Recipe", "one_thread", "train_local"]
