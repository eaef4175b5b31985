"""Robust accuracy, conditional and not, and the alarms that tell when it is an illusion.

References
----------
Athalye et al., Obfuscated Gradients Give a False Sense of Security, ICML 2018, section 3.1 (what
masked gradients look like). Wong et al., ICLR 2020, section 5.4 (catastrophic overfitting).
Andreina et al., AAAI 2025, released code (the conditional accuracy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.adversarial.frozen import Model, frozen, predict
from fedrobust.adversarial.images import as_images
from fedrobust.adversarial.objective import perturb
from fedrobust.adversarial.white_box import pgd
from fedrobust.spec import Spec, suggest


@dataclass(frozen=True)
class Robustness:
    """Accuracies in [0, 1] over one set, from predicted labels.

    Attributes
    ----------
    clean
        On the clean images (CA, TA).
    unconditional
        On the perturbed images, over all of them (RA_all).
    conditional
        On the perturbed images, over those that were right when clean (RA_cond); NaN if none was.
    both
        Right on the clean image and on the perturbed one, over all.
    """

    clean: float
    unconditional: float
    conditional: float
    both: float

    @property
    def success(self) -> float:
        """Attack success rate: 1 - conditional."""
        return 1 - self.conditional


def robustness(clean: Tensor, perturbed: Tensor, y: Tensor) -> Robustness:
    """Compare labels predicted on clean and on perturbed images with the true ones, all (N,).

    Raises
    ------
    ValueError
        If the shapes differ or there is no sample.
    """
    shapes = {tuple(clean.shape), tuple(perturbed.shape), tuple(y.shape)}
    if len(shapes) > 1 or not y.numel():
        raise ValueError(f"robustness needs three equal, non-empty shapes, got {sorted(shapes)}")
    right, still = clean == y, perturbed == y
    kept, count = int((right & still).sum()), int(right.sum())
    return Robustness(
        clean=count / len(y),
        unconditional=int(still.sum()) / len(y),
        conditional=kept / count if count else float("nan"),
        both=kept / len(y),
    )


def attacks_at(eps: float, *, steps: int = 20, restarts: int = 1) -> dict[str, Spec]:
    """Return the usual evaluation: FGSM, and PGD with steps of eps / 4 on two losses."""
    climb = {"name": "pgd", "eps": eps, "step_size": eps / 4, "steps": steps, "restarts": restarts}
    return {
        "fgsm": {"name": "fgsm", "eps": eps, "random_start": False},
        f"pgd-{steps}": climb,
        f"margin-{steps}": {**climb, "loss": "margin"},
    }


def evaluate_attacks(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Mapping[str, Spec],
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> dict[str, Robustness]:
    """Measure a model under each attack and, as "worst", under the best attack on each image.

    Parameters
    ----------
    model
        Images in [0, 1] to logits; left as found.
    x, y
        Images (N, ...) in [0, 1] and labels (N,).
    attacks
        Label -> spec of ``PERTURBATIONS``; ``attacks_at(eps)`` gives the usual ones.
    batch_size
        Images at once.
    generator
        Draws the random starts; None: the draws of seed 0, the same for each batch.

    Returns
    -------
    dict
        Label -> robustness. "worst" counts an image as right if no attack and no clean error
        changed it, so it is at most every other unconditional accuracy and the clean one.

    Raises
    ------
    ValueError
        If a spec is unknown or the images leave [0, 1].
    """
    # A caller's label would be overwritten in the result without a word.
    if "worst" in attacks:
        raise ValueError("the label 'worst' is taken by the worst case over all attacks")
    clean = predict(model, as_images(x, y), batch_size=batch_size)
    found = predicted_under(
        model, x, y, attacks=attacks, batch_size=batch_size, generator=generator
    )
    report = {label: robustness(clean, labels, y) for label, labels in found.items()}
    return {**report, "worst": robustness(clean, worst_of(clean, found.values(), y), y)}


def predicted_under(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Mapping[str, Spec],
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the labels (N,) that a model gives under each attack, as ``evaluate_attacks``."""
    images, found = as_images(x, y), {}
    for label, spec in attacks.items():
        parts = [
            perturb(
                model, images[i : i + batch_size], y[i : i + batch_size], spec, generator=generator
            )
            for i in range(0, len(images), batch_size)
        ]
        found[label] = predict(model, torch.cat(parts), batch_size=batch_size)
    return found


def worst_of(clean: Tensor, found: Iterable[Tensor], y: Tensor) -> Tensor:
    """Return of each image a wrong label, clean or under some attack, or else the true one, (N,).

    All are labels (N,).
    """
    worst = clean.clone()
    for labels in found:
        # Once wrong stays wrong: a later attack that leads back to the true label repairs nothing.
        worst = torch.where(worst == y, labels, worst)
    return worst


def masking_alarms(
    *,
    clean: float,
    one_step: float | None,
    many_steps: float,
    transfer: float | None = None,
    queries: float | None = None,
    stronger: float | None = None,
    tolerance: float = 0.0,
) -> tuple[str, ...]:
    """Return what contradicts the order of attacks; empty if nothing does.

    Robust accuracies must not rise with the strength of the attack: stronger (Auto-PGD, AutoAttack,
    or "worst") <= many steps <= one step, many steps <= clean, and many steps <= transfer and
    queries, attacks that see no gradient. Where they do, the gradients are masked or the attack is
    broken.

    Parameters
    ----------
    clean, one_step, many_steps, transfer, queries, stronger
        Accuracies in [0, 1] on the same images; None: not measured.
    tolerance
        Differences up to this are noise.
    """
    claims = [
        (many_steps, one_step, "many steps leave more accuracy than one step"),
        (many_steps, clean, "perturbed accuracy exceeds clean accuracy"),
        (many_steps, transfer, "white-box steps leave more accuracy than transferred images"),
        (many_steps, queries, "white-box steps leave more accuracy than random squares"),
        (stronger, many_steps, "the stronger attack leaves more accuracy than many steps"),
    ]
    return tuple(
        f"{text}: {low:.3f} > {high:.3f}"
        for low, high, text in claims
        if low is not None and high is not None and low > high + tolerance
    )


def overfitting_probe(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    count: int = 256,
    generator: torch.Generator | None = None,
) -> float:
    """Return the PGD accuracy on the first ``count`` training images: one point per epoch."""
    # Always the same images: the points of different epochs are compared with each other.
    images, labels = as_images(x[:count]), y[:count]
    attacked = pgd(
        model, images, labels, eps=eps, step_size=eps / 4, steps=steps, generator=generator
    )
    return float((predict(model, attacked) == labels).double().mean())


def catastrophic_overfitting(history: Sequence[float], *, drop: float = 0.2) -> bool:
    """Tell whether the latest PGD accuracy is more than ``drop`` below the best so far.

    ``history`` holds ``overfitting_probe`` of every epoch of FGSM training: the collapse from one
    epoch to the next that single-step training is known for. The limit is ours.
    """
    return len(history) > 1 and history[-1] < max(history) - drop


def auto_attack(
    model: Model, x: Tensor, y: Tensor, *, eps: float, norm: str = "linf", batch_size: int = 250
) -> Tensor:
    """Perturb images with the standard AutoAttack, from the optional package ``autoattack``.

    Raises
    ------
    ImportError
        If the package is not installed.
    ValueError
        If the images leave [0, 1] or the norm is unknown.

    References
    ----------
    Croce and Hein, Reliable Evaluation of Adversarial Robustness, ICML 2020.
    """
    names = {"linf": "Linf", "l2": "L2"}
    if norm not in names:
        raise ValueError(f"unknown norm {norm!r}; {suggest(norm, list(names))}")
    images = as_images(x, y)
    try:
        # Here, not at the top: the package is optional.
        from autoattack import AutoAttack
    except ImportError as error:
        raise ImportError("auto_attack needs the package 'autoattack', not installed") from error
    with frozen(model):
        # Without a seed AutoAttack takes the time of day, and no run could be repeated.
        runner = AutoAttack(
            model, norm=names[norm], eps=eps, seed=0, verbose=False, device=str(images.device)
        )
        return runner.run_standard_evaluation(images, y, bs=batch_size)
