"""What federated adversarial training adds to local losses: calibration, slack, fewer epochs.

References
----------
Chen et al., CalFAT: Calibrated Federated Adversarial Training with Label Skewness, NeurIPS 2022.
Zhu et al., Combating Exacerbated Heterogeneity for Robust Models in Federated Learning (SFAT), ICLR
2023. Shah et al., Adversarial Training in Communication Constrained Federated Learning (FedDynAT),
2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Calibrated(nn.Module):
    """A client's model with ``strength * log(count)`` of each class added to its logits.

    For training and for the attack alike; the server's model stays the inner one. A class that the
    client does not hold counts as one image.

    Parameters
    ----------
    model
        Images in [0, 1] to logits.
    counts
        The client's images per class, (classes,).
    strength
        0.1 in the released code, whose scale of 10 inside the cross-entropy is not included.
    """

    offset: Tensor

    def __init__(self, model: nn.Module, counts: Tensor, *, strength: float = 0.1) -> None:
        super().__init__()
        self.model = model
        # log 0 = -inf would make the KL terms of trades and mart NaN (-inf less -inf).
        offset = strength * counts.double().clamp_min(1).log()
        # Not persistent: a state dict would carry the client's label counts out.
        self.register_buffer("offset", offset.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return calibrated logits."""
        logits: Tensor = self.model(images)
        return logits + self.offset.to(logits.dtype)


def slack_weights(losses: Tensor, counts: Tensor, *, alpha: float = 1 / 6, top: int = 1) -> Tensor:
    """Return aggregation weights (n,), sum 1, that favour the lowest adversarial losses.

    Weights go by ``counts``, and those of the ``top`` clients of lowest loss are multiplied by
    (1 + alpha) / (1 - alpha): 1.4 by default. Losses and counts are claims of the clients: this is
    for federations without Byzantine members, and no substitute for a robust rule.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite or a count negative, ``alpha`` leaves [0, 1) or
        ``top`` leaves 1 .. n.
    """
    if losses.dim() != 1 or losses.shape != counts.shape or not len(losses):
        shapes = tuple(losses.shape), tuple(counts.shape)
        raise ValueError(f"slack_weights needs one loss and one count per client, got {shapes}")
    if not (0 <= alpha < 1 and 1 <= top <= len(losses)):
        raise ValueError(f"slack_weights needs alpha in [0, 1) and top >= 1, got {alpha}, {top}")
    weights = counts.double()
    finite = torch.isfinite(losses).all() and torch.isfinite(weights).all()
    if not bool(finite and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("slack_weights needs finite losses and counts of at least 0")
    factor = torch.ones_like(weights)
    # stable: among equal losses the first client is taken, on every machine the same.
    factor[losses.argsort(stable=True)[:top]] = (1 + alpha) / (1 - alpha)
    weights = weights * factor
    return (weights / weights.sum()).float()


def epochs_at(round: int, *, first: int, gamma: float = 0.5, every: int = 10) -> int:
    """Return the local epochs of a round: max(1, floor(first * gamma^floor(round / every))).

    FedDynAT lowers them against drift; its published values are not known, these are ours.
    """
    return max(1, math.floor(first * gamma ** (round // every)))
