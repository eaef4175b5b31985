"""Losses by differences of logits, which scaling the logits does not change."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio per sample: its size does not change with the logits' scale.

    Raises
    ------
    ValueError
        For fewer than three classes.

    References
    ----------
    Croce and Hein, ICML 2020, equation 5.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the dlr loss needs 3 classes, got {logits.shape[1]}")
    top = logits.sort(1, descending=True)
    right = _of(logits, y)
    other = torch.where(top.indices[:, 0] == y, top.values[:, 1], top.values[:, 0])
    return (other - right) / (top.values[:, 0] - top.values[:, 2] + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio towards one class per sample.

    Raises
    ------
    ValueError
        For fewer than four classes.

    References
    ----------
    Croce and Hein, ICML 2020, equation 6.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted dlr loss needs 4 classes, got {logits.shape[1]}")
    top = logits.sort(1, descending=True).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY
    return (_of(logits, target) - _of(logits, y)) / scale


def _of(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]
