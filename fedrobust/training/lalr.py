"""LALR, the layer-wise adaptive step that keeps very large batches stable, and its schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.spec import Spec, resolve, suggest


@dataclass(frozen=True, eq=False)
class LalrState:
    """What the next step needs: moments of the gradient, one tensor per parameter tensor.

    ``squares`` is empty unless the direction is "lamb"; both are empty for "gradient".
    """

    step: int
    means: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]


def lalr_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: LalrState | None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 1e-4,
    clip: tuple[float, float] = (0.0, 10.0),
    direction: str = "lamb",
) -> tuple[list[Tensor], LalrState]:
    """Step every tensor by lr * clip(its norm), whatever the size of its gradient.

    theta <- theta - lr * tau(|theta|) / |u| * u with tau(z) = min(max(z, c_l), c_u) and the L2 norm
    of each tensor on its own; the ratio tau / |u| is 1 where tau or |u| is 0.

    Parameters
    ----------
    params, grads
        Lists of tensors of equal shapes; neither is changed.
    state
        What the step before returned; None at first (moments of zero).
    lr
        The layer-wise step size; a layer moves by at most ``lr * c_u``, or ``lr * |u|`` at ratio 1.
    betas, eps
        Decay of the moments (no bias correction) and the floor under sqrt(v).
    weight_decay
        Adds ``weight_decay * theta`` to the direction, inside the normalisation.
    clip
        (c_l, c_u), the bounds of tau.
    direction
        "lamb": u = m / (sqrt(v) + eps), the released code and the paper's default. "lars": u = m.
        "gradient": u = the gradient.

    Raises
    ------
    ValueError
        If lists or shapes differ, the direction is unknown, ``clip`` is no range, or a gradient is
        not finite (or too large to square): the parameters would not be finite either.

    References
    ----------
    Zhang et al., UAI 2022, the layer-wise adaptive learning rate; moments as in the released code
    (You et al., LAMB, ICLR 2020, without bias correction).
    """
    _check(params, grads, clip, direction)
    state = state or _first_state(params, direction)
    _check_state(state, len(params), direction)
    means = [
        torch.lerp(m, g.detach(), 1 - betas[0]) for m, g in zip(state.means, grads, strict=False)
    ]
    squares = [_decay_square(v, g, betas[1]) for v, g in zip(state.squares, grads, strict=False)]
    if direction == "lamb":
        updates = [_lamb(m, v, eps) for m, v in zip(means, squares, strict=True)]
    else:
        updates = [u.detach().clone() for u in (means if direction == "lars" else grads)]
    layers = [p.detach() for p in params]
    updates = [u.add_(p, alpha=weight_decay) for u, p in zip(updates, layers, strict=True)]
    lengths = [_norm(u) for u in updates]
    _check_finite(lengths + [v.sum() for v in squares])
    after = [
        u.mul_(-lr * _ratio(_norm(p), length, clip)).add_(p)
        for u, p, length in zip(updates, layers, lengths, strict=True)
    ]
    return after, LalrState(state.step + 1, tuple(means), tuple(squares))


def constant(step: int, *, lr: float) -> float:
    """Keep the learning rate."""
    return lr


def multistep(step: int, *, lr: float, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """Multiply by ``gamma`` at every milestone: DAT's schedule, milestones after the warm-up."""
    return lr * gamma ** sum(step >= milestone for milestone in milestones)


def cosine(step: int, *, lr: float, steps: int, final: float = 0.0) -> float:
    """Fall from ``lr`` to ``final`` over half a cosine of ``steps`` steps, then stay there."""
    done = min(step / steps, 1.0)
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
}


def lr_at(step: int, *, lr: float, schedule: Spec = "constant", warmup: int = 0) -> float:
    """Return the learning rate of iteration ``step``, counted from 0.

    Parameters
    ----------
    step
        The iteration.
    lr
        The base rate, reached at the end of the warm-up.
    schedule
        A name of ``SCHEDULES`` or a table with its parameters, in iterations after the warm-up.
    warmup
        Iterations of linear warm-up: iteration k has ``lr * (k + 1) / warmup``.

    Raises
    ------
    ValueError
        If the step or the warm-up is negative, or the schedule is unknown.
    """
    if step < 0 or warmup < 0:
        raise ValueError(f"lr_at needs step and warmup of at least 0, got {step} and {warmup}")
    function, settings = resolve(SCHEDULES, schedule, kind="schedule", supplied=("lr",))
    if step < warmup:
        return lr * (step + 1) / warmup
    return function(step - warmup, lr=lr, **settings)


_MOMENTS = {"lamb": (True, True), "lars": (True, False), "gradient": (False, False)}


def _first_state(params: Sequence[Tensor], direction: str) -> LalrState:
    first, second = _MOMENTS[direction]
    zeros = tuple(torch.zeros_like(p, requires_grad=False) for p in params)
    return LalrState(0, zeros if first else (), zeros if second else ())


def _check_state(state: LalrState, count: int, direction: str) -> None:
    wanted = tuple(count if kept else 0 for kept in _MOMENTS[direction])
    held = (len(state.means), len(state.squares))
    if held != wanted:
        raise ValueError(
            f"lalr_step with {direction!r} needs {wanted} moments, its state has {held}"
        )


def _decay_square(old: Tensor, grad: Tensor, beta: float) -> Tensor:
    grad = grad.detach()
    return (beta * old).addcmul_(grad, grad, value=1 - beta)


def _lamb(mean: Tensor, square: Tensor, eps: float) -> Tensor:
    floor = square.sqrt().add_(eps)
    return torch.div(mean, floor, out=floor)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor)


def _ratio(size: Tensor, length: Tensor, clip: tuple[float, float]) -> Tensor:
    """Return tau(size) / length, or 1 where either is 0, without waiting for the device."""
    bounded = size.clamp(*clip)
    usable = (bounded > 0) & (length > 0)
    return torch.where(usable, bounded / length, 1.0)


def _check_finite(norms: list[Tensor]) -> None:
    if norms and not bool(torch.isfinite(torch.stack(norms)).all()):
        raise ValueError("lalr_step needs finite gradients whose squares are finite too")


def _check(
    params: Sequence[Tensor], grads: Sequence[Tensor], clip: tuple[float, float], direction: str
) -> None:
    if direction not in _MOMENTS:
        raise ValueError(f"unknown direction {direction!r}; {suggest(direction, list(_MOMENTS))}")
    if not 0 <= clip[0] <= clip[1]:
        raise ValueError(f"clip needs 0 <= c_l <= c_u, got {clip}")
    shapes = [tuple(p.shape) for p in params], [tuple(g.shape) for g in grads]
    if shapes[0] != shapes[1]:
        raise ValueError(f"lalr_step needs gradients of shapes {shapes[0]}, got {shapes[1]}")
