"""A perturbation and a loss tried before the start, on two invented images."""

from __future__ import annotations

import torch
from torch import nn

from fedrobust.adversarial.objective import adversarial_loss
from fedrobust.failures import blamed
from fedrobust.seeds import generator
from fedrobust.spec import Spec, SpecError, split


def rehearse(perturbation: Spec, loss: Spec = "standard") -> None:
    """Perturb two images of two pixels, the pixels being the logits, and take the loss.

    Raises
    ------
    SpecError
        For a setting that means nothing: ``perturbation 'pgd': steps needs at least 0, got -1``.
    """
    images = torch.tensor([[0.2, 0.7], [0.6, 0.4]]).view(2, 1, 1, 2)
    source = generator(0, "rehearsal")
    try:
        with blamed("perturbation", split(perturbation)[0], but=(TypeError, ValueError)):
            adversarial_loss(
                nn.Flatten(),
                images,
                torch.tensor([1, 0]),
                perturbation=perturbation,
                loss=loss,
                generator=source,
            )
    except (TypeError, ValueError) as error:
        # It says already which part of which spec is wrong.
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"perturbation {split(perturbation)[0]!r}: {error}") from error
