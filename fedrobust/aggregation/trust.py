"""Rules that trust data of the server's own: FLTrust, Zeno, RSA."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.aggregation.columns import sign_sums
from fedrobust.aggregation.distances import TINY, lowest, norms, products_with
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal
from fedrobust.ranges import real


def fltrust_step(updates: Tensor, *, root: Tensor) -> Outcome:
    """Weigh updates by their cosine with a root update, each scaled to the root's norm.

    Parameters
    ----------
    root
        The server's own update on its trusted data, (d,). In a run the server computes it from
        ``server.root_images`` images of its own.

    Returns
    -------
    (d,); the root itself where no update points its way.

    Raises
    ------
    ValueError
        For a root of another shape.

    References
    ----------
    Cao, Fang, Liu, Gong, FLTrust, NDSS 2021, section IV. Tolerates any number of Byzantine clients
    as far as the root data are representative.
    """
    if root.shape != updates.shape[1:]:
        raise ValueError(
            f"fltrust needs a root of shape {tuple(updates.shape[1:])}, got {tuple(root.shape)}"
        )
    if not bool(torch.isfinite(root).all()):
        raise Refusal("fltrust needs a finite root, got NaN or Inf")
    root = root.to(updates)
    length = norms(root[None])[0]
    lengths = norms(updates)
    # The root at length 1 before the product: two long vectors overflow float32.
    along = products_with(updates, root / float(length.clamp(min=TINY)))
    scores = torch.where(lengths > 0, along / lengths, 0.0).clamp(min=0)
    if not scores.any():
        return Outcome(root.clone(), None, torch.zeros_like(scores))
    weights = scores / scores.sum() * torch.where(lengths > 0, length / lengths, 0.0)
    return Outcome(weighted(updates, weights), None, weights)


def zeno_weights(
    updates: Tensor,
    *,
    f: int,
    loss: Callable[[Tensor], float],
    lr: float = 0.1,
    rho: float = 5e-4,
) -> Tensor:
    """Average the n - f updates that lower the server's own loss most, long ones punished.

    Score: loss(0) - loss(lr x) - rho |x|^2.

    Parameters
    ----------
    f
        How many updates are left out (the paper's b).
    loss
        Step (d,) -> loss of the model minus that step, on data of the server's own. In a run the
        server draws ``server.root_images`` images anew every round.
    lr, rho
        The step that is tried, and the price of length; too small a rho lets huge updates win. The
        defaults are ours.

    Raises
    ------
    ValueError
        If ``n < f + 1``, for lr <= 0 or rho < 0.

    References
    ----------
    Xie, Koyejo, Gupta, Zeno: Distributed SGD with Suspicion-based Fault-tolerance, ICML 2019,
    Definition 2. Needs one honest client only, and a forward pass for each.
    """
    real(lr, "zeno", "lr", above=0)
    real(rho, "zeno", "rho", low=0)
    before = loss(torch.zeros_like(updates[0]))
    descents = [before - loss(lr * row) for row in updates]
    scores = [
        descent - rho * float(norm) ** 2 if math.isfinite(descent) else -math.inf
        for descent, norm in zip(descents, norms(updates), strict=True)
    ]
    # Negated, since lowest() breaks ties for the lowest index: the best score comes first.
    worst_first = -torch.tensor(scores, dtype=torch.float64)
    return even(lowest(worst_first, len(updates) - f), len(updates))


def rsa(updates: Tensor, *, penalty: float = 0.01, root: Tensor | None = None) -> Tensor:
    """Add the signs of the updates times a penalty: each client pulls a coordinate equally far.

    The server's half of RSA, with updates in the place of w_0 - w_i. An INTERPRETATION: in the
    paper each worker keeps a model w_i of its own, held near w_0 by the same penalty; here clients
    start every round from the global model.

    Parameters
    ----------
    penalty
        lambda > 0: a client moves a coordinate of the aggregate by this much, whatever it sends.
    root
        Gradient of the server's own cost f_0 (d,); none where None.

    Raises
    ------
    ValueError
        For a penalty that is not positive.

    References
    ----------
    Li, Xu, Chen, Giannakis, Ling, RSA: Byzantine-Robust Stochastic Aggregation, AAAI 2019,
    equation 8 (l1 penalty).
    """
    real(penalty, "rsa", "penalty", above=0)
    pull = penalty * sign_sums(updates)
    return pull if root is None else pull + root.to(pull)
