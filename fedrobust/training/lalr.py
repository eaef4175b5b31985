"""Layer-wise adaptive steps, which keep very large batches stable: LALR (LAMB's form), LARS.

References
----------
Zhang et al., Distributed Adversarial Training, UAI 2022 (LALR; released code, lamb.py); You et al.,
LAMB, ICLR 2020; You et al., Large Batch Training of Convolutional Networks, 2017 (LARS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedrobust.training.transforms import (
    Memory,
    Transform,
    add_decayed_weights,
    chain,
    scale_by_adam,
    scale_by_trust_ratio,
    trace,
)

Clip = tuple[float, float]


@dataclass(frozen=True, eq=False)
class LalrState:
    """What the next step needs: both moments of the gradient, one tensor per parameter tensor."""

    step: int
    means: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]


def lamb(
    *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, clip: Clip
) -> Transform:
    """Scale each layer of ``m / (sqrt(v) + eps) + decay * theta`` to lr tau(|theta|)."""
    return chain(
        scale_by_adam(betas, eps), add_decayed_weights(weight_decay), scale_by_trust_ratio(lr, clip)
    )


def lars(*, lr: float, beta: float, weight_decay: float, clip: Clip) -> Transform:
    """Scale each layer of ``m + decay * theta`` to lr tau(|theta|)."""
    return chain(trace(beta), add_decayed_weights(weight_decay), scale_by_trust_ratio(lr, clip))


def layerwise(*, lr: float, weight_decay: float, clip: Clip) -> Transform:
    """Scale each layer of ``gradient + decay * theta`` to lr tau(|theta|); no memory."""
    return chain(add_decayed_weights(weight_decay), scale_by_trust_ratio(lr, clip))


def step_layers(
    transform: Transform,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    memory: Memory | None,
) -> tuple[list[Tensor], Memory]:
    """Subtract the transformed gradients from the parameters; nothing is changed in place.

    Raises
    ------
    ValueError
        If the shapes differ, the memory is another transformation's, or a gradient is not finite.
    """
    shapes = [tuple(p.shape) for p in params], [tuple(g.shape) for g in grads]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"a layer-wise step needs gradients of shapes {shapes[0]}, got {shapes[1]}"
        )
    memory = transform.init(params) if memory is None else memory
    held = [len(moment) for moment in memory]
    if held != [len(params)] * transform.moments:
        raise ValueError(
            f"a layer-wise step of {len(params)} layers needs {transform.moments} moments each,"
            f" its state has {held}"
        )
    layers = [p.detach() for p in params]
    updates, memory = transform.apply([g.detach() for g in grads], layers, memory)
    return [p - u for p, u in zip(layers, updates, strict=True)], memory


def lalr_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: LalrState | None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 1e-4,
    clip: Clip = (0.0, 10.0),
) -> tuple[list[Tensor], LalrState]:
    """Step every tensor by lr * clip(its norm), whatever the size of its gradient.

    theta <- theta - lr * tau(|theta|) / |u| * u with tau(z) = min(max(z, c_l), c_u), the L2 norm
    of each tensor on its own, and u = m / (sqrt(v) + eps) + weight_decay * theta.

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
        Adds ``weight_decay * theta`` to the update, inside the normalisation.
    clip
        (c_l, c_u), the bounds of tau.

    Raises
    ------
    ValueError
        If lists or shapes differ, ``clip`` is no range, or a gradient is not finite (or too large
        to square): the parameters would not be finite either.

    References
    ----------
    Zhang et al., UAI 2022, the layer-wise adaptive learning rate; moments as in the released code
    (You et al., LAMB, ICLR 2020, without bias correction).
    """
    transform = lamb(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip=clip)
    memory = None if state is None else (state.means, state.squares)
    after, (means, squares) = step_layers(transform, params, grads, memory)
    return after, LalrState((state.step if state else 0) + 1, means, squares)
