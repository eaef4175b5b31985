"""Perturbation and loss together: what one step of adversarial training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust.adversarial.frozen import Model
from fedrobust.adversarial.images import as_images, check_radius
from fedrobust.adversarial.losses import mart, natural, standard, trades
from fedrobust.adversarial.transfer import mi_cse, mi_cwa, mi_fgsm, mi_sam
from fedrobust.adversarial.white_box import fgsm, pgd, trades_kl, unperturbed
from fedrobust.models.dual import DualBatchNorm, Routed, on_branch
from fedrobust.spec import Spec, parameters, resolve
from fedrobust.training.losses import Networks, StackableLoss

PERTURBATIONS: dict[str, Callable[..., Tensor]] = {
    "none": unperturbed,
    "fgsm": fgsm,
    "pgd": pgd,
    "trades": trades_kl,
}
TRANSFER_ATTACKS: dict[str, Callable[..., Tensor]] = {
    "mi_fgsm": mi_fgsm,
    "mi_sam": mi_sam,
    "mi_cse": mi_cse,
    "mi_cwa": mi_cwa,
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "natural": natural,
    "standard": standard,
    "trades": trades,
    "mart": mart,
}
_SUPPLIED = ("generator", "start")


def perturb(
    model: Model,
    x: Tensor,
    y: Tensor,
    spec: Spec,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """Perturb images (B, ...) in [0, 1] by a spec of ``PERTURBATIONS``.

    A list of generators draws for equal parts of the batch, each for its own.

    Raises
    ------
    ValueError
        If the spec is unknown or does not fit, or the images leave [0, 1].
    """
    function, settings = resolve(PERTURBATIONS, spec, kind="perturbation", supplied=_SUPPLIED)
    return _call(function, model, x, y, settings, generator)


def check_perturbation(spec: Spec) -> None:
    """Check a spec of ``PERTURBATIONS`` before any image is there.

    Raises
    ------
    ValueError
        If it is unknown or does not fit, or no image in [0, 1] is as far as its radius.
    """
    _, settings = resolve(PERTURBATIONS, spec, kind="perturbation", supplied=_SUPPLIED)
    if settings.get("norm", "linf") == "linf" and "eps" in settings:
        check_radius(float(settings["eps"]))


def perturb_on_surrogates(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    spec: Spec,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturb images (B, ...) in [0, 1] on surrogates, by a spec of ``TRANSFER_ATTACKS``.

    Raises
    ------
    ValueError
        If the spec is unknown or does not fit, or the images leave [0, 1].
    """
    function, settings = resolve(TRANSFER_ATTACKS, spec, kind="transfer attack", supplied=_SUPPLIED)
    return _call(function, models, x, y, settings, generator)


def adversarial_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    perturbation: Spec,
    loss: Spec = "standard",
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
    attack: Callable[..., Tensor] = perturb,
) -> Tensor:
    """Perturb a batch at the present parameters and return the training loss, ready for backward.

    Parameters
    ----------
    model
        Images in [0, 1] to logits, in the mode in which it trains; the attack sets its own.
    x, y
        Images (B, ...) in [0, 1] and labels (B,); -1 is unlabelled.
    perturbation, loss
        Specs of ``PERTURBATIONS`` and ``LOSSES``. TRADES goes with the perturbation "trades".
    fraction
        Share of the batch that is perturbed: the first round(fraction * B) rows, as in federated
        adversarial training (k of B; Zizzo et al., 2020, where the batch is shuffled too).
    generator
        Draws the random starts; None: the draws of seed 0 at every call.
    attack
        ``perturb``, or what measures it.

    Notes
    -----
    A model with dual BatchNorm is attacked, and sees the perturbed batch, on its adversarial
    branch; the clean batch goes down the clean one.

    Raises
    ------
    ValueError
        If a spec is unknown or does not fit, the fraction leaves [0, 1], or the images do.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction needs a value in [0, 1], got {fraction}")
    function, settings = resolve(LOSSES, loss, kind="loss")
    images, count = as_images(x, y), round(fraction * len(x))
    attacked = images
    if count:
        with on_branch(model, "adversarial"):
            head = attack(model, images[:count], y[:count], perturbation, generator=generator)
        attacked = torch.cat([head, images[count:]])
    return function(_routed(model, attacked), images, y, attacked, **settings)


def adversarial_objective(
    *,
    perturbation: Spec,
    loss: Spec = "standard",
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
    attack: Callable[..., Tensor] = perturb,
) -> StackableLoss:
    """Return ``adversarial_loss`` with these settings, for one client or a stack of them.

    In a stack the attack sees one batch with all clients' images, and each client's own network
    answers for its part; the draws are each client's own.
    """
    settings: dict[str, Any] = {"perturbation": perturbation, "loss": loss, "fraction": fraction}
    alone = partial(adversarial_loss, **settings, generator=generator, attack=attack)
    function, given = resolve(LOSSES, loss, kind="loss")

    def stacked(
        networks: Networks,
        x: Tensor,
        y: Tensor,
        sources: Sequence[torch.Generator | None],
    ) -> Tensor:
        attacked = _attacked(networks, x, y, perturbation, fraction, sources, attack)
        return networks.each(partial(function, **given), x, y, attacked)

    return StackableLoss(alone, stacked, repr(settings), generator, evaluates=True)


def _attacked(
    networks: Networks,
    x: Tensor,
    y: Tensor,
    perturbation: Spec,
    fraction: float,
    sources: Sequence[torch.Generator | None],
    attack: Callable[..., Tensor],
) -> Tensor:
    """Perturb the head of each client's batch, (m, B, ...)."""
    clients, size = y.shape
    count = round(fraction * size)
    if not count:
        return x
    # Detached: the attack differentiates by the images, and needs no graph over the parameters.
    fixed, shape = networks.detached(), (clients, count, *x.shape[2:])

    def model(images: Tensor) -> Tensor:
        return fixed(images.view(shape)).flatten(0, 1)

    # None is seed 0 for each client, as it is alone: a stack must find the same images.
    drawn = [source or torch.Generator().manual_seed(0) for source in sources]
    images, labels = x[:, :count].flatten(0, 1), y[:, :count].flatten()
    head = attack(model, images, labels, perturbation, generator=drawn)
    return torch.cat([head.view(shape), x[:, count:]], 1)


def _routed(model: Model, attacked: Tensor) -> Model:
    """Send the perturbed batch down the adversarial branch, where the model has two."""
    if isinstance(model, nn.Module) and any(isinstance(m, DualBatchNorm) for m in model.modules()):
        return Routed(model, attacked)
    return model


def _call(
    function: Callable[..., Tensor],
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    settings: dict[str, object],
    generator: torch.Generator | list[torch.Generator] | None,
) -> Tensor:
    drawn = {"generator": generator} if "generator" in parameters(function) else {}
    return function(models, x, y, **settings, **drawn)
