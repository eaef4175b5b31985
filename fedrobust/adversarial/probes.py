"""Why attacks transfer: similarity of loss gradients, and curvature of the loss in the input.

References
----------
Yang et al., TRS: Transferability Reduced Ensemble, NeurIPS 2021 (similarity and smoothness);
Andreina et al., AAAI 2025 (the argument for distributed learning).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.adversarial.criteria import Criterion, cross_entropy
from fedrobust.adversarial.frozen import Model, frozen, input_gradient
from fedrobust.adversarial.images import as_images, as_labels, column


def loss_gradient(
    model: Model, x: Tensor, y: Tensor, *, criterion: Criterion = cross_entropy
) -> Tensor:
    """Return the gradient of each sample's loss with respect to its image, in the images' shape."""
    images, labels = as_images(x, y), as_labels(y)
    with frozen(model):
        return input_gradient(lambda z: criterion(model(z), labels), images)


def gradient_similarity(first: Model, second: Model, x: Tensor, y: Tensor) -> Tensor:
    """Return per sample the cosine between two models' loss gradients, (B,), in [-1, 1].

    0 where one of the gradients is zero. A system that votes is given as a function, such as the
    mean of its members' logits.

    References
    ----------
    Yang et al., NeurIPS 2021, definition 2.
    """
    one, two = (loss_gradient(model, x, y).flatten(1).double() for model in (first, second))
    # float64, and a floor that exists in float64 only: gradients of 1e-30, usual on a confident
    # model, have squares that are 0 in float32.
    one, two = (g / g.norm(dim=1, keepdim=True).clamp_min(1e-300) for g in (one, two))
    return (one * two).sum(1).clamp(-1, 1).to(torch.promote_types(x.dtype, torch.float32))


def input_curvature(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    iterations: int = 50,
    generator: torch.Generator | None = None,
    criterion: Criterion = cross_entropy,
) -> Tensor:
    """Return per sample the largest eigenvalue of the loss's Hessian in the image, (B,).

    Power iteration on Hessian-vector products. Where the eigenvalue of largest magnitude is
    negative, a second round runs on the Hessian shifted by it.

    Parameters
    ----------
    model, x, y
        Images to logits; images in [0, 1]; labels.
    iterations
        Products per round; the error falls with the ratio of the two largest eigenvalues.
    generator
        Draws the start; None: the draws of seed 0.
    criterion
        (logits, y) -> (B,).

    Raises
    ------
    ValueError
        If the images leave [0, 1] or there is no iteration.
    """
    if iterations < 1:
        raise ValueError(f"input_curvature needs at least 1 iteration, got {iterations}")
    images, labels = as_images(x, y), as_labels(y)
    source = generator or torch.Generator().manual_seed(0)
    start = torch.randn(images.shape, generator=source, device=source.device).to(images)
    with frozen(model):

        def largest(shift: Tensor) -> Tensor:
            value, vector = torch.zeros_like(shift), _unit(start)
            for _ in range(iterations):
                product = _hessian_product(model, images, labels, vector, criterion)
                # Rayleigh quotient of the Hessian itself, whatever shift steers the iteration.
                value = (product * vector).flatten(1).sum(1)
                vector = _unit(product + column(shift, images) * vector)
            return value

        value = largest(torch.zeros(len(images), dtype=images.dtype, device=images.device))
        if bool((value < 0).any()):
            # Shifted by |lowest eigenvalue| no eigenvalue is negative, so that the one of largest
            # magnitude, which power iteration finds, is also the largest.
            shift = (-value).clamp_min(0)
            value = torch.where(value < 0, largest(shift), value)
    return value


def independent_vote_failure(rate: float, members: int) -> float:
    """Return how often a majority of members is fooled if each is, independently, at this rate.

    sum over k > members / 2 of C(members, k) rate^k (1 - rate)^(members - k), for an odd number.
    Real members agree more, so a measured failure is between this and the rate.

    Raises
    ------
    ValueError
        If the rate is no probability, or the number of members is even or below 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate needs a probability, got {rate}")
    if members < 1 or members % 2 == 0:
        raise ValueError(f"independent_vote_failure needs an odd number of members, got {members}")
    need = members // 2 + 1
    return sum(
        math.comb(members, k) * rate**k * (1 - rate) ** (members - k)
        for k in range(need, members + 1)
    )


def _hessian_product(
    model: Model, x: Tensor, y: Tensor, vector: Tensor, criterion: Criterion
) -> Tensor:
    point = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(criterion(model(point), y).sum(), point, create_graph=True)
    if not gradient.requires_grad:  # a loss that is linear in the image
        return torch.zeros_like(x)
    # d<g, v>/dx = H v: the Hessian itself, pixels squared, is never built.
    inner = (gradient * vector).sum()
    (product,) = torch.autograd.grad(inner, point, allow_unused=True)
    return torch.zeros_like(x) if product is None else product.nan_to_num(0.0)


def _unit(x: Tensor) -> Tensor:
    return x / column(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-30), x)
