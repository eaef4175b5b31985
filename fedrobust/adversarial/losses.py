"""Training losses against perturbed inputs; rows with label -1 are unlabelled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.adversarial.criteria import cross_entropy, kl
from fedrobust.adversarial.frozen import Model


def masked_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled rows; 0 if there are none."""
    # A plain mean would weigh a batch down by its unlabelled rows, and be 0 / 0 without labels.
    return cross_entropy(logits, y).sum() / (y >= 0).sum().clamp_min(1)


def natural(model: Model, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Cross-entropy on the clean images alone: training without a defence."""
    return masked_cross_entropy(model(x), y)


def standard(
    model: Model, x: Tensor, y: Tensor, x_adv: Tensor, *, lambda_nat: float = 0.0
) -> Tensor:
    """CE(f(x_adv), y) + lambda_nat * CE(f(x), y): adversarial training.

    Parameters
    ----------
    model
        Images in [0, 1] to logits. The perturbed images go first, in a pass of their own, which
        matters to BatchNorm; without a natural weight there is no clean pass.
    x, y, x_adv
        Clean images, labels (-1: unlabelled), perturbed images.
    lambda_nat
        Weight of the natural loss: DAT's released code has 1 with PGD and 0 with FGSM.

    References
    ----------
    Madry et al., ICLR 2018; Zhang et al., UAI 2022, objective and released code.
    """
    loss = masked_cross_entropy(model(x_adv), y)
    return loss + lambda_nat * masked_cross_entropy(model(x), y) if lambda_nat else loss


def trades(model: Model, x: Tensor, y: Tensor, x_adv: Tensor, *, beta: float = 6.0) -> Tensor:
    """CE(f(x), y) + beta * mean KL(f(x) || f(x_adv)); unlabelled rows count in the KL only.

    References
    ----------
    Zhang et al., TRADES, ICML 2019, equation 5; with unlabelled rows Carmon et al., Unlabeled Data
    Improves Adversarial Robustness, NeurIPS 2019, released code (the KL averages over all rows, the
    cross-entropy over the labelled).
    """
    logits = model(x)
    divergence = kl(logits.log_softmax(1), model(x_adv)).mean()
    return masked_cross_entropy(logits, y) + beta * divergence


def mart(model: Model, x: Tensor, y: Tensor, x_adv: Tensor, *, beta: float = 6.0) -> Tensor:
    """Boosted CE on x_adv + beta * KL weighted by the clean probability of being wrong.

    Boosted: CE(f(x_adv), y) - log(1 - max wrong probability). Unlabelled rows have no boosted term
    and the full KL weight of 1 (an interpretation; the paper's semi-supervised form uses pseudo
    labels).

    References
    ----------
    Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR
    2020, equation 12 and released code (its small constants inside the logarithms included).
    """
    attacked, clean = model(x_adv), model(x)
    labelled = y >= 0
    right = F.one_hot(y.clamp_min(0), clean.shape[1]).bool()
    wrong = attacked.softmax(1).masked_fill(right, 0).amax(1)
    # The constants are the released code's: without them a certain wrong class gives log(0).
    boosted = cross_entropy(attacked, y) - torch.log(1.0001 - wrong) * labelled
    doubt = 1.0000001 - clean.softmax(1).masked_fill(~right, 0).sum(1)
    weight = torch.where(labelled, doubt, torch.ones_like(doubt))
    pull = (kl(clean.log_softmax(1), attacked) * weight).mean()
    return boosted.sum() / labelled.sum().clamp_min(1) + beta * pull
