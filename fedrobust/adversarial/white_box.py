"""White-box perturbations: FGSM with a random start, PGD, and the TRADES perturbation.

References
----------
Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015. Madry et al., Towards
Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, section 2.1. Wong et al., Fast Is
Better than Free, ICLR 2020, algorithm 3. Zhang et al., TRADES, ICML 2019, algorithm 1. Zhang et
al., Distributed Adversarial Training, UAI 2022, released code (the forms taken here).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.adversarial.criteria import CRITERIA, Criterion, kl
from fedrobust.adversarial.frozen import Model, frozen, input_gradient
from fedrobust.adversarial.images import as_images, as_labels, check_radius, column
from fedrobust.spec import suggest

NORMS = ("linf", "l2")
Objective = Callable[[Tensor], Tensor]


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    random_start: bool = True,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    norm: str = "linf",
    targeted: bool = False,
    loss: str | Criterion = "cross_entropy",
    mode: str = "eval",
    start: Tensor | None = None,
) -> Tensor:
    """Climb the loss in ``steps`` projected steps; the last point is returned.

    Parameters
    ----------
    model
        Images in [0, 1] to logits; it is left as found, its mode and gradients included.
    x, y
        Images (B, ...) in [0, 1] and labels (B,): the true ones, or the wanted ones if targeted.
    eps, step_size, steps
        Radius and step in units of the images (8 / 255); 0 steps leave the start noise alone.
    random_start
        Start uniformly in the ball: per pixel for "linf".
    restarts
        Runs per sample; kept is one that fools the model, and of those the highest loss.
    generator
        Draws the starts; None: the draws of seed 0. Each image's draw depends on its place. A list
        of generators draws for equal parts of the batch.
    norm
        "linf" (steps by the sign) or "l2" (steps by the normalised gradient).
    targeted
        Descend the loss towards ``y``.
    loss
        A name of ``CRITERIA`` or a function (logits, y) -> (B,).
    mode
        "eval" (the released code's), "train" or "keep"; see ``frozen``.
    start
        First perturbation instead of a drawn one, clipped to the ball.

    Returns
    -------
    Tensor
        float32 (float64 for float64 images), within eps of x and in [0, 1].

    Raises
    ------
    ValueError
        If the images leave [0, 1] or a setting is impossible.

    References
    ----------
    Madry et al., ICLR 2018, section 2.1, in the form of Zhang et al., UAI 2022, released code.
    """
    images = as_images(x, y)
    _check(eps=eps, step_size=step_size, steps=steps, restarts=restarts)
    check_radius(eps, norm=norm, pixels=images.shape[1:].numel())
    if restarts > 1 and (start is not None or not random_start):
        raise ValueError(f"restarts={restarts} need a random start, else all of them are the same")
    objective = _objective(model, y, loss, targeted)
    source = generator or torch.Generator().manual_seed(0)
    best: Tensor | None = None
    with frozen(model, mode=mode):
        for _ in range(restarts):
            # The generator goes on: each restart starts elsewhere, all from one seed.
            delta = _first(images, eps, norm, random_start, start, source)
            found = _climb(objective, images, delta, eps, step_size, steps, norm)
            best = found if best is None else _better(model, objective, best, found, y, targeted)
    assert best is not None
    return best


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    norm: str = "linf",
    targeted: bool = False,
    loss: str | Criterion = "cross_entropy",
    mode: str = "eval",
    start: Tensor | None = None,
    clip_start: bool = True,
) -> Tensor:
    """Take one step of 1.25 eps from a random start and clip it to the ball: one gradient.

    Parameters
    ----------
    model, x, y, eps, random_start, generator, norm, targeted, loss, mode, start
        See ``pgd``; DAT's code attacks in train mode here. Without a random start the result is
        the classical x + eps * sign(gradient).
    step_size
        None: 1.25 eps.
    clip_start
        True, the released code: the model sees the start clipped to [0, 1], and a pixel that was
        clipped has no gradient and does not move. False: the gradient is taken at x + start, as in
        the first step of ``pgd``, and every pixel moves. Where many pixels are 0 or 1, False is
        the far stronger training (8x8 digits: robust accuracy 68 % against 61 %).

    Raises
    ------
    ValueError
        If the images leave [0, 1] or a setting is impossible.

    References
    ----------
    Wong et al., ICLR 2020, algorithm 3; Zhang et al., UAI 2022, released code, option --fast.
    """
    images = as_images(x, y)
    size = 1.25 * eps if step_size is None else step_size
    _check(eps=eps, step_size=size)
    check_radius(eps, norm=norm, pixels=images.shape[1:].numel())
    objective = _objective(model, y, loss, targeted)
    source = generator or torch.Generator().manual_seed(0)
    with frozen(model, mode=mode):
        delta = _first(images, eps, norm, random_start, start, source)
        seen = (lambda z: objective(z.clamp(0, 1))) if clip_start else objective
        gradient = input_gradient(seen, images + delta)
        delta = _project(delta + size * _direction(gradient, norm), eps, norm)
    return (images + delta).clamp(0, 1)


def trades_kl(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    eps: float,
    step_size: float,
    steps: int,
    noise: float = 0.001,
    generator: torch.Generator | None = None,
    norm: str = "linf",
    mode: str = "eval",
) -> Tensor:
    """Climb KL(f(x) || f(x + delta)) from a little Gaussian noise; labels are not used.

    Settings are those of ``pgd``; ``noise`` is the standard deviation of the start (at the clean
    image itself the gradient is zero).

    Raises
    ------
    ValueError
        If the images leave [0, 1] or a setting is impossible.

    References
    ----------
    Zhang et al., TRADES, ICML 2019, algorithm 1 and released code.
    """
    images = as_images(x, y)
    _check(eps=eps, step_size=step_size, steps=steps, noise=noise)
    check_radius(eps, norm=norm, pixels=images.shape[1:].numel())
    source = generator or torch.Generator().manual_seed(0)
    with frozen(model, mode=mode):
        with torch.no_grad():
            # A constant: the gradient goes through the perturbed side of the divergence alone.
            clean = model(images).log_softmax(1)
        delta = _project(noise * _draw(torch.randn, images, source), eps, norm)
        return _climb(lambda z: kl(clean, model(z)), images, delta, eps, step_size, steps, norm)


def unperturbed(model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return a copy of the images: training without an attack."""
    return as_images(x, y)


def _climb(
    objective: Objective,
    x: Tensor,
    delta: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    norm: str,
) -> Tensor:
    for _ in range(steps):
        gradient = input_gradient(objective, x + delta)
        moved = (x + delta + step_size * _direction(gradient, norm)).clamp(0, 1)
        # Clipped first: projecting shrinks delta towards x, which is in [0, 1], so both hold.
        delta = _project(moved - x, eps, norm)
    # x + (moved - x) may miss [0, 1] by one rounding.
    return (x + delta).clamp(0, 1)


def _objective(model: Model, y: Tensor, loss: str | Criterion, targeted: bool) -> Objective:
    if isinstance(loss, str) and loss not in CRITERIA:
        raise ValueError(f"unknown loss {loss!r}; {suggest(loss, list(CRITERIA))}")
    criterion = CRITERIA[loss] if isinstance(loss, str) else loss
    sign = -1.0 if targeted else 1.0
    labels = as_labels(y)
    return lambda z: sign * criterion(model(z), labels)


@torch.no_grad()
def _better(
    model: Model, objective: Objective, best: Tensor, found: Tensor, y: Tensor, targeted: bool
) -> Tensor:
    """Keep per sample what fools the model, then what has the higher objective."""
    # Targeted, the aim is to be at y; otherwise not to be.
    fooled = [(model(z).argmax(1) == y) == targeted for z in (best, found)]
    higher = objective(found) > objective(best)
    take = (fooled[1] & ~fooled[0]) | ((fooled[1] == fooled[0]) & higher)
    return torch.where(column(take, best), found, best)


def _first(
    x: Tensor,
    eps: float,
    norm: str,
    random_start: bool,
    start: Tensor | None,
    source: torch.Generator,
) -> Tensor:
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; {suggest(norm, list(NORMS))}")
    if start is not None:
        if start.shape != x.shape:
            raise ValueError(f"start needs the shape {tuple(x.shape)}, got {tuple(start.shape)}")
        return _project(start.detach().to(x), eps, norm)
    if not random_start:
        return torch.zeros_like(x)
    if norm == "linf":
        return _draw(torch.rand, x, source) * 2 * eps - eps
    direction = _direction(_draw(torch.randn, x, source), norm)
    # The root makes it uniform in the volume: a plain uniform radius crowds the centre.
    radius = _draw(torch.rand, x.flatten(1)[:, 0], source) ** (1 / x.shape[1:].numel())
    return eps * column(radius, x) * direction


def _draw(
    kind: Callable[..., Tensor], like: Tensor, source: torch.Generator | list[torch.Generator]
) -> Tensor:
    """Draw on the generator's device: the same start wherever the images are.

    A list of generators draws for equal parts of the batch, each for its own.
    """
    if isinstance(source, list):
        parts = zip(like.chunk(len(source)), source, strict=True)
        return torch.cat([_draw(kind, part, one) for part, one in parts])
    drawn = kind(like.shape, generator=source, device=source.device, dtype=like.dtype)
    return drawn.to(like.device)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / column(_length(gradient).clamp_min(1e-12), gradient)


def _project(delta: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * column((eps / _length(delta).clamp_min(1e-12)).clamp_max(1.0), delta)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _check(**settings: float) -> None:
    for name, value in settings.items():
        least = 1 if name == "restarts" else 0
        # Not "value < least": NaN is refused too.
        if not value >= least:
            raise ValueError(f"{name} needs at least {least}, got {value}")
