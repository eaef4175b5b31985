"""Gradient similarity of a voting system whose members keep their weights to themselves.

The loss of the system is the cross-entropy of its members' mean logit. Its gradient in the image is
the mean over the members of J_n^T (p - y), with J_n the Jacobian of member n's logits and p the
system's probabilities: each member can answer its term alone, given p - y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.adversarial.frozen import frozen, input_gradient


@dataclass(frozen=True)
class Probed:
    """Mean cosines between loss gradients, and mean largest eigenvalues of the input Hessian."""

    surrogate_system: float
    surrogate_node: float
    node_node: float
    curvature: float


def cotangent(logits: Tensor, labels: Tensor) -> Tensor:
    """Return p - y, the gradient of the cross-entropy in the logits, (B, C)."""
    return logits.softmax(1) - F.one_hot(labels, logits.shape[1])


def vote_gradient(module: nn.Module, images: Tensor, weights: Tensor) -> Tensor:
    """Return J^T w per image, in the images' shape: a member's term of the system's gradient."""
    with frozen(module):
        return input_gradient(lambda z: (module(z) * weights).sum(1), images)


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the mean over images of the cosine between two gradients; 0 where one is zero."""
    one, two = first.flatten(1).double(), second.flatten(1).double()
    # A floor that only float64 has: gradients of 1e-30 are usual on a confident model.
    lengths = (one.norm(dim=1) * two.norm(dim=1)).clamp_min(1e-300)
    return float(((one * two).sum(1) / lengths).mean())


def similarities(
    surrogate: Tensor, system: Tensor, nodes: Sequence[Tensor], curvature: Mapping[int, Tensor]
) -> Probed:
    """Compare loss gradients, each (B, C, H, W): the attacker's, the system's, the nodes'."""
    pairs = [cosine(a, b) for a, b in combinations(nodes, 2)]
    own = [cosine(surrogate, node) for node in nodes]
    bends = [float(values.mean()) for values in curvature.values()]
    return Probed(
        cosine(surrogate, system),
        sum(own) / len(own),
        sum(pairs) / len(pairs) if pairs else 1.0,
        sum(bends) / len(bends) if bends else float("nan"),
    )


def mean_logit(logits: Tensor) -> Tensor:
    """Return the system's logits from its members', (m, B, C) -> (B, C)."""
    # One member's NaN would silence the whole system.
    return torch.nan_to_num(logits).mean(0)
