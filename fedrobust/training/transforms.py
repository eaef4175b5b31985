"""Small transformations of a gradient, and chains of them: LALR, LAMB and LARS are three chains.

A transformation turns updates (one tensor per parameter tensor) into other updates. It may keep
``moments`` tensors per parameter tensor from one step to the next; that memory is a value which the
caller hands back. Nothing is changed in place, so a server and every replica of its model can take
the same step from the same bytes.

References
----------
The split follows optax (``scale_by_adam``, ``add_decayed_weights``, ``scale_by_trust_ratio``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Layers = list[Tensor]
Memory = tuple[tuple[Tensor, ...], ...]  # one tuple of layers per moment
Apply = Callable[[Layers, Layers, Memory], tuple[Layers, Memory]]  # updates, parameters, memory


@dataclass(frozen=True)
class Transform:
    """One step from updates to updates, with ``moments`` tensors of memory per layer."""

    apply: Apply
    moments: int = 0

    def init(self, params: Sequence[Tensor]) -> Memory:
        """Return the memory before the first step: zeros."""
        zeros = tuple(torch.zeros_like(p, requires_grad=False) for p in params)
        # The same zeros for every moment: nothing is changed in place.
        return (zeros,) * self.moments


def chain(*parts: Transform) -> Transform:
    """Return the transformations one after the other, as one; their memories are joined."""

    def apply(updates: Layers, params: Layers, memory: Memory) -> tuple[Layers, Memory]:
        kept: Memory = ()
        for part in parts:
            own, memory = memory[: part.moments], memory[part.moments :]
            updates, own = part.apply(updates, params, own)
            kept += own
        return updates, kept

    return Transform(apply, sum(part.moments for part in parts))


def trace(beta: float) -> Transform:
    """Return the running mean ``m <- beta m + (1 - beta) g`` of the gradients."""

    def apply(updates: Layers, params: Layers, memory: Memory) -> tuple[Layers, Memory]:
        means = _running_means(memory[0], updates, beta)
        return list(means), (means,)

    return Transform(apply, 1)


def scale_by_adam(betas: tuple[float, float], eps: float) -> Transform:
    """Return ``m / (sqrt(v) + eps)`` with the running means m of g and v of g^2.

    Without Adam's bias correction, as in the released code of DAT. A gradient whose square
    overflows makes v infinite and the result zero: the step would look harmless, so the second
    moment is checked.

    Raises
    ------
    ValueError
        When applied, if a second moment is not finite.
    """

    def apply(updates: Layers, params: Layers, memory: Memory) -> tuple[Layers, Memory]:
        means = _running_means(memory[0], updates, betas[0])
        squares = tuple(
            # In place on the product just made, not on the memory.
            (betas[1] * v).addcmul_(g, g, value=1 - betas[1])
            for v, g in zip(memory[1], updates, strict=True)
        )
        # A sum a layer: one number to look at, not finite where any of the layer's is not.
        check_finite([v.sum() for v in squares])
        scaled = []
        for mean, square in zip(means, squares, strict=True):
            floor = square.sqrt().add_(eps)
            scaled.append(torch.div(mean, floor, out=floor))
        return scaled, (means, squares)

    return Transform(apply, 2)


def add_decayed_weights(decay: float) -> Transform:
    """Add ``decay * theta`` to the update."""

    def apply(updates: Layers, params: Layers, memory: Memory) -> tuple[Layers, Memory]:
        return [u.add(p, alpha=decay) for u, p in zip(updates, params, strict=True)], memory

    return Transform(apply)


def scale_by_trust_ratio(lr: float, clip: tuple[float, float]) -> Transform:
    """Scale each layer's update u to the length lr tau(|theta|), tau(z) = min(max(z, c_l), c_u).

    The ratio tau / |u| is 1 where tau or |u| is 0, so that a layer of zeros can leave zero. Rate
    and ratio are multiplied first: one pass over the layer, and one rounding, less.

    Raises
    ------
    ValueError
        If ``clip`` is no range; when applied, if an update is not finite.
    """
    if not 0 <= clip[0] <= clip[1]:
        raise ValueError(f"clip needs 0 <= c_l <= c_u, got {clip}")

    def apply(updates: Layers, params: Layers, memory: Memory) -> tuple[Layers, Memory]:
        lengths = [torch.linalg.vector_norm(u) for u in updates]
        check_finite(lengths)
        sizes = [torch.linalg.vector_norm(p) for p in params]
        return [
            u * (lr * _ratio(size, length, clip))
            for u, size, length in zip(updates, sizes, lengths, strict=True)
        ], memory

    return Transform(apply)


def check_finite(values: Sequence[Tensor]) -> None:
    """Raise ValueError unless all of the scalars are finite: one wait for the device."""
    if values and not bool(torch.isfinite(torch.stack(list(values))).all()):
        raise ValueError("a layer-wise step needs finite gradients whose squares are finite too")


def _running_means(
    before: Sequence[Tensor], updates: Sequence[Tensor], beta: float
) -> tuple[Tensor, ...]:
    return tuple(torch.lerp(m, g, 1 - beta) for m, g in zip(before, updates, strict=True))


def _ratio(size: Tensor, length: Tensor, clip: tuple[float, float]) -> Tensor:
    """Return tau(size) / length, or 1 where either is 0, without waiting for the device."""
    bounded = size.clamp(*clip)
    usable = (bounded > 0) & (length > 0)
    return torch.where(usable, bounded / length, 1.0)
