"""A model of 1.1 million parameters and a data set of one's own, for the rehearsal under Aspis.

Start every worker and the server with ``--use experiments/deploy/own_task.py``: all hold the same
examples, and the server says which of them are whose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn


def scanned_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return inputs (N, 64) in [0, 1] and classes (N,); put your own reader here."""
    inputs, classes = load_digits(return_X_y=True)
    return (inputs / 16).astype(np.float32), classes.astype(np.int64)


def wide_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a fresh network, two hidden layers of 1,024."""
    width = 1024
    return nn.Sequential(
        nn.Linear(shape[0], width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
