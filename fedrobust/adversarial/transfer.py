"""Transfer attacks from surrogate models: MI-FGSM, SAM, CSE and the Common Weakness attack.

All are untargeted, within eps in L-infinity, without a random start, on images in [0, 1]; the
surrogates run in eval mode and are left as found. The ensemble's loss is the cross-entropy of the
sum of the surrogates' logits. A norm below 1e-12 counts as 1e-12: an over-confident surrogate has
gradients of exactly 0, and gives no step instead of NaN.

References
----------
Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018 (MI-FGSM). Chen et al.,
Rethinking Model Ensemble in Transfer-Based Adversarial Attacks, ICLR 2024 (SAM, CSE and their
union, the Common Weakness attack), in the form of the authors' public code. Used against
distributed learning by Andreina et al., AAAI 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.adversarial.frozen import Model, frozen
from fedrobust.adversarial.images import check_radius
from fedrobust.adversarial.surrogates import View, look, unit
from fedrobust.spec import suggest

STEP_SCALINGS = ("fixed", "proportional")
NORMALISATIONS = ("per_sample", "batch")
_CODE_EPS = 16 / 255  # the radius for which the public code states its steps


def mi_fgsm(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    step_scaling: str = "fixed",
    diversity: float = 0.0,
    smoothing: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the ensemble's loss by the sign of a momentum of normalised gradients.

    Parameters
    ----------
    models
        Surrogates: images in [0, 1] to logits, each with its own normalisation inside.
    x, y
        Images (B, ...) in [0, 1] and true labels (B,).
    eps
        Radius in units of the images.
    steps
        Iterations; 0 returns the images.
    step_size
        Outer step; None: 1.6 / 255 with fixed steps, eps / 10 with proportional ones.
    decay
        Momentum mu.
    step_scaling
        How the public code's steps, stated for eps = 16 / 255, go with another eps. "fixed":
        they stay, as for a user who passes eps alone. "proportional": they scale with eps.
    diversity
        Probability of a random shrinking and padding of the input before each gradient (DI, Xie et
        al., CVPR 2019; the 0.9 to 1 range is ours). The draw is shared by the batch.
    smoothing
        Odd width of a Gaussian of standard deviation 3 over each gradient (TI, Dong et al., CVPR
        2019, has 15); 0: none.
    generator
        Draws for ``diversity``; None: the draws of seed 0.

    Returns
    -------
    Tensor
        float32 (float64 for float64 images), within eps of x and in [0, 1].

    Raises
    ------
    ValueError
        If the images leave [0, 1], there is no surrogate, or a setting is impossible.

    References
    ----------
    Dong et al., CVPR 2018, algorithm 1.
    """
    scale = _scale(eps, steps, step_scaling)
    alpha = scale / 10 if step_size is None else step_size
    view = look(models, x, y, eps, diversity, smoothing, generator)
    with frozen(*view.models):
        point, momentum = view.x, torch.zeros_like(view.x)
        for _ in range(steps):
            momentum = decay * momentum + unit(view.gradient(point), 1)
            point = view.project(point + alpha * momentum.sign())
    return point


def mi_sam(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    reverse_step: float | None = None,
    decay: float = 1.0,
    form: str = "official",
    step_scaling: str = "fixed",
    diversity: float = 0.0,
    smoothing: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the gradient taken at the worst point of a small ball: towards flat maxima.

    Settings are those of ``mi_fgsm``, and:

    Parameters
    ----------
    models, x, y, eps, steps, decay, step_scaling, diversity, smoothing, generator
        See ``mi_fgsm``.
    step_size, reverse_step
        Outer step, and the step down the loss before its gradient is taken (not projected); None:
        3.2 / 255 and 1.6 / 255 with fixed steps, eps / 5 and eps / 10 with proportional ones.
    form
        "official": the gradients at the point and at the worst point are added, which is what the
        public code does (it never clears the first), and the stronger attack. "paper": the second
        alone.

    Raises
    ------
    ValueError
        As ``mi_fgsm``, or if the form is unknown.

    References
    ----------
    Chen et al., ICLR 2024, the sharpness-aware half of algorithm 1.
    """
    if form not in ("official", "paper"):
        raise ValueError(f"unknown form {form!r}; {suggest(form, ['official', 'paper'])}")
    scale = _scale(eps, steps, step_scaling)
    alpha = scale / 5 if step_size is None else step_size
    reverse = scale / 10 if reverse_step is None else reverse_step
    view = look(models, x, y, eps, diversity, smoothing, generator)
    with frozen(*view.models):
        point, momentum = view.x, torch.zeros_like(view.x)
        for _ in range(steps):
            first = view.gradient(point)
            gradient = view.gradient(point - reverse * first.sign())
            gradient = gradient + first if form == "official" else gradient
            momentum = decay * momentum + unit(gradient, 1)
            point = view.project(point + alpha * momentum.sign())
    return point


def mi_cse(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    inner_step: float = 50.0,
    decay: float = 1.0,
    normalisation: str = "per_sample",
    step_scaling: str = "fixed",
    diversity: float = 0.0,
    smoothing: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sweep over the surrogates one by one, so that their gradients come to agree.

    Settings are those of ``mi_fgsm``, and:

    Parameters
    ----------
    models, x, y, eps, steps, decay, step_scaling, diversity, smoothing, generator
        See ``mi_fgsm``; the order of the surrogates is the order of the sweep.
    step_size
        Outer step; None: 3.2 / 255 with fixed steps, eps / 5 with proportional ones.
    inner_step
        Step along the L2-normalised inner momentum; 50 to 250 saturate the ball alike.
    normalisation
        Of the outer momentum. "per_sample": an image's result does not depend on its batch.
        "batch": the L1 norm over the whole batch, as in the public code.

    Raises
    ------
    ValueError
        As ``mi_fgsm``, or if the normalisation is unknown.

    References
    ----------
    Chen et al., ICLR 2024, the cosine-similarity half of algorithm 1.
    """
    alpha = _scale(eps, steps, step_scaling) / 5 if step_size is None else step_size
    view = look(models, x, y, eps, diversity, smoothing, generator)
    return _sweep(view, steps, alpha, 0.0, inner_step, decay, normalisation)


def mi_cwa(
    models: Model | Sequence[Model],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    reverse_step: float | None = None,
    inner_step: float = 250.0,
    decay: float = 1.0,
    normalisation: str = "per_sample",
    step_scaling: str = "fixed",
    diversity: float = 0.0,
    smoothing: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Common Weakness attack: SAM's step down the loss, then CSE's sweep over the surrogates.

    Settings are those of ``mi_cse``, and:

    Parameters
    ----------
    models, x, y, eps, steps, step_size, inner_step, decay, normalisation, step_scaling
        See ``mi_cse``.
    diversity, smoothing, generator
        See ``mi_fgsm``.
    reverse_step
        Step down the ensemble's loss before the sweep; None: 16 / 15 / 255 with fixed steps, eps
        / 15 with proportional ones. 0 gives ``mi_cse``.

    Raises
    ------
    ValueError
        As ``mi_cse``.

    References
    ----------
    Chen et al., ICLR 2024, algorithm 1. The step size of 250 is the public code's; the movement is
    measured against the point before the step down.
    """
    scale = _scale(eps, steps, step_scaling)
    alpha = scale / 5 if step_size is None else step_size
    reverse = scale / 15 if reverse_step is None else reverse_step
    view = look(models, x, y, eps, diversity, smoothing, generator)
    return _sweep(view, steps, alpha, reverse, inner_step, decay, normalisation)


def _sweep(
    view: View,
    steps: int,
    alpha: float,
    reverse: float,
    inner_step: float,
    decay: float,
    normalisation: str,
) -> Tensor:
    if normalisation not in NORMALISATIONS:
        hint = suggest(normalisation, list(NORMALISATIONS))
        raise ValueError(f"unknown normalisation {normalisation!r}; {hint}")
    with frozen(*view.models):
        point = view.x
        inner, outer = torch.zeros_like(point), torch.zeros_like(point)
        for _ in range(steps):
            moved = point
            # CSE has no step down: its gradient would be a pass over all surrogates for nothing.
            if reverse:
                moved = view.project(point - reverse * view.gradient(point).sign())
            for model in view.models:  # the inner momentum lives on across models and iterations
                inner = decay * inner + unit(view.gradient(moved, model), 2)
                moved = view.project(moved + inner_step * inner)
            outer = decay * outer + unit(moved - point, 1, whole=normalisation == "batch")
            point = view.project(point + alpha * outer.sign())
    return point


def _scale(eps: float, steps: int, step_scaling: str) -> float:
    if step_scaling not in STEP_SCALINGS:
        raise ValueError(
            f"unknown step_scaling {step_scaling!r}; {suggest(step_scaling, list(STEP_SCALINGS))}"
        )
    if not (eps >= 0 and steps >= 0):
        raise ValueError(f"a transfer attack needs eps and steps of at least 0, got {eps}, {steps}")
    check_radius(eps)
    return _CODE_EPS if step_scaling == "fixed" else eps
