"""Auto-PGD: PGD that sets its own steps, on cross-entropy and on the difference of logits ratio.

References
----------
Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks, ICML 2020: algorithm 1, equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.adversarial.frozen import Model, frozen, input_gradient, predict
from fedrobust.adversarial.images import as_images, as_labels, check_radius, column
from fedrobust.adversarial.logit_ratios import dlr, targeted_dlr
from fedrobust.spec import suggest

PULL = 0.75  # how much of a step is new; the rest goes on in the last direction
RHO = 0.75  # a step is halved unless more than this share of the steps climbed
LOSSES = ("cross_entropy", "dlr")
Loss = Callable[[Tensor], Tensor]  # logits (B, classes) -> (B,)


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    loss: str = "cross_entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb a loss in L-infinity by steps that start at 2 eps and halve where they stop to pay.

    Parameters
    ----------
    model, x, y, eps, steps, generator
        As in ``pgd``; there is no step size to choose.
    loss
        "cross_entropy" or "dlr".

    Returns
    -------
    Tensor
        Of each image the last point that fools the model; where there is none, the point of the
        highest loss.

    Raises
    ------
    ValueError
        If the images leave [0, 1] or a setting is impossible.

    References
    ----------
    Croce and Hein, ICML 2020, algorithm 1, as in their program: 22 % of the steps before the first
    check, 3 % fewer before each next one, 6 % at least, rho = 0.75, one run.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; {suggest(loss, list(LOSSES))}")
    labels = as_labels(y)
    if loss == "dlr":
        return _run(model, x, labels, lambda z: dlr(z, labels), eps, steps, generator)

    def entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    return _run(model, x, labels, entropy, eps, steps, generator)


def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    targets: int = 9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the targeted ratio towards each of the likeliest wrong classes, one after the other.

    Parameters
    ----------
    model, x, y, eps, steps, generator
        As in ``apgd``.
    targets
        How many classes: the likeliest on the clean image first; images that are fooled rest.

    Raises
    ------
    ValueError
        As ``apgd``; for fewer classes than four or than the targets need.
    """
    images, labels = as_images(x, y), as_labels(y)
    with frozen(model), torch.no_grad():
        ranked = model(images).masked_fill(
            F.one_hot(labels, model(images[:1]).shape[1]).bool(), -torch.inf
        )
    if not 1 <= targets < ranked.shape[1]:
        raise ValueError(f"apgd_targeted needs 1..{ranked.shape[1] - 1} targets, got {targets}")
    classes = ranked.sort(1, descending=True).indices
    found, left = images.clone(), predict(model, images) == labels
    for rank in range(targets):
        chosen = left.nonzero().flatten()
        if not len(chosen):
            break
        attacked = _towards(model, images, labels, classes[:, rank], chosen, eps, steps, generator)
        found[chosen] = attacked
        left[chosen] = predict(model, attacked) == labels[chosen]
    return found


def apgd_both(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    targets: int = 9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the cross-entropy, then the targeted ratio with what is right still.

    The two white-box attacks of the standard AutoAttack, which adds FAB and Square.

    Parameters
    ----------
    model, x, y, eps, steps, targets, generator
        As in ``apgd_targeted``; fewer targets where there are fewer classes.

    Raises
    ------
    ValueError
        As ``apgd_targeted``.

    References
    ----------
    Croce and Hein, ICML 2020, section 5.
    """
    found = apgd(model, x, y, eps=eps, steps=steps, generator=generator)
    left = (predict(model, found) == y).nonzero().flatten()
    if len(left):
        with frozen(model), torch.no_grad():
            most = min(targets, model(found[:1]).shape[1] - 1)
        found[left] = apgd_targeted(
            model, x[left], y[left], eps=eps, steps=steps, targets=most, generator=generator
        )
    return found


def _towards(
    model: Model,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    chosen: Tensor,
    eps: float,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    y, target = labels[chosen], targets[chosen]
    loss: Loss = lambda logits: targeted_dlr(logits, y, target)  # noqa: E731
    return _run(model, images[chosen], y, loss, eps, steps, generator)


@dataclass
class _Climb:
    """One run's points and what decides on the steps; every field holds a row an image."""

    x: Tensor
    point: Tensor
    loss: Tensor
    gradient: Tensor
    size: Tensor
    before: Tensor = field(init=False)
    best: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)
    best_loss: Tensor = field(init=False)
    checked_loss: Tensor = field(init=False)
    halved: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.best = self.point
        self.best_gradient, self.best_loss = self.gradient, self.loss
        self.checked_loss = self.loss
        # As if every step had just been halved: the first check is on climbing alone.
        self.halved = torch.ones_like(self.loss, dtype=torch.bool)

    def move(self, eps: float, first: bool) -> None:
        """Step by the gradient's sign, and on in the last direction."""
        pull = 1.0 if first else PULL
        aim = _into(self.point + column(self.size, self.x) * self.gradient.sign(), self.x, eps)
        on = self.point + pull * (aim - self.point) + (1 - pull) * (self.point - self.before)
        self.before, self.point = self.point, _into(on, self.x, eps)

    def note(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Take the new point's loss in; return where it is higher than the last one's."""
        climbed, better = loss > self.loss, loss > self.best_loss
        self.loss, self.gradient = loss, gradient
        self.best = torch.where(column(better, self.x), self.point, self.best)
        self.best_gradient = torch.where(column(better, self.x), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        return climbed

    def check(self, climbed: Tensor, length: int) -> None:
        """Halve where too few steps climbed, or nothing got better with an unhalved step."""
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (climbed <= RHO * length) | stuck
        self.checked_loss = self.best_loss
        self.size = torch.where(self.halved, self.size / 2, self.size)
        back = column(self.halved, self.x)
        self.point = torch.where(back, self.best, self.point)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)


def _run(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    eps: float,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    images = as_images(x, y)
    if steps < 1:
        raise ValueError(f"apgd needs at least 1 step, got {steps}")
    check_radius(eps)
    source = generator or torch.Generator().manual_seed(0)
    with frozen(model):
        point = (images + eps * _noise(images, source)).clamp(0, 1)
        climb = _Climb(images, point, *_look(model, point, loss, y)[:2], _sizes(images, eps))
        fooling, fooled = climb.point, _look(model, point, loss, y)[2]
        length, least, fewer = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        seen, climbed = 0, torch.zeros_like(climb.loss)
        for turn in range(steps):
            climb.move(eps, first=turn == 0)
            value, gradient, wrong = _look(model, climb.point, loss, y)
            fooling = torch.where(column(wrong, images), climb.point, fooling)
            fooled = fooled | wrong
            climbed, seen = climbed + climb.note(value, gradient), seen + 1
            if seen == length:
                climb.check(climbed, length)
                seen, climbed = 0, torch.zeros_like(climbed)
                length = max(length - fewer, least)
    return torch.where(column(fooled, images), fooling, climb.best)


def _look(model: Model, point: Tensor, loss: Loss, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, its gradient, and where the model is wrong, at one point by one pass."""
    kept: list[Tensor] = []

    def objective(z: Tensor) -> Tensor:
        logits = model(z)
        value = loss(logits)
        kept[:] = [value.detach(), logits.detach().argmax(1) != y]
        return value

    gradient = input_gradient(objective, point)
    return kept[0], gradient, kept[1]


def _sizes(x: Tensor, eps: float) -> Tensor:
    return torch.full((len(x),), 2 * eps, dtype=x.dtype, device=x.device)


def _noise(x: Tensor, source: torch.Generator) -> Tensor:
    """Draw uniformly, each image stretched until its largest value is 1."""
    drawn = 2 * torch.rand(x.shape, generator=source, device=source.device, dtype=x.dtype) - 1
    drawn = drawn.to(x.device)
    return drawn / column(drawn.flatten(1).abs().amax(1), x)


def _into(point: Tensor, x: Tensor, eps: float) -> Tensor:
    return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)
