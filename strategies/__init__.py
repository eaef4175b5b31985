"""What the server runs: Flower strategies that are made from values."""

from strategies.robust import RobustStrategy

__all__ = ["RobustStrategy"]
