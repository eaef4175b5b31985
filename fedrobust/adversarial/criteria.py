"""What an attack climbs: losses per sample, from logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (B, classes), labels (B,) -> (B,)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per sample; 0 for unlabelled samples (y = -1)."""
    return F.cross_entropy(logits, y, reduction="none", ignore_index=-1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the right one, per sample; 0 for unlabelled samples (y = -1).

    Its gradient does not vanish on an over-confident model, where that of cross-entropy does.

    References
    ----------
    Carlini and Wagner, S&P 2017, objective f_6 without the cut.
    """
    # one_hot refuses -1: such rows are taken for class 0 here and set to 0 in the last line.
    right = F.one_hot(y.clamp_min(0), logits.shape[1]).bool()
    wrong = logits.masked_fill(right, -torch.inf).amax(1)
    # Masked, not multiplied by the mask: an infinite logit times 0 would be NaN.
    gap = wrong - logits.masked_fill(~right, 0).sum(1)
    return torch.where(y >= 0, gap, torch.zeros_like(gap))


def kl(log_clean: Tensor, logits: Tensor) -> Tensor:
    """KL(clean || other) per sample, from log-probabilities and logits."""
    other = logits.log_softmax(1)
    return F.kl_div(other, log_clean, reduction="none", log_target=True).sum(1)


CRITERIA: dict[str, Criterion] = {"cross_entropy": cross_entropy, "margin": margin}
