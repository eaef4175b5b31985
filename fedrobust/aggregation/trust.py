"""Rules that judge clients by direction, history, or data of the server's own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.aggregation.columns import median
from fedrobust.aggregation.distances import lowest, squared_distances
from fedrobust.aggregation.geometry import TINY, geometric_median, norms_from
from fedrobust.aggregation.selection import even, krum_scores, weighted


def median_of_means(updates: Tensor, *, groups: int, inner: str = "geometric_median") -> Tensor:
    """Average within consecutive groups, take the (geometric) median of the averages.

    Parameters
    ----------
    groups
        k, 1..n; the tolerated number of Byzantine clients is below k / 2. Sizes differ by one at
        most, the later groups being the larger.
    inner
        "geometric_median" or "median" (coordinate-wise).

    Raises
    ------
    ValueError
        For a number of groups outside 1..n or an unknown ``inner``.

    References
    ----------
    Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, 2017, section 3.
    """
    n = len(updates)
    if not 1 <= groups <= n:
        raise ValueError(f"median_of_means of {n} updates needs 1 <= groups <= {n}, got {groups}")
    if inner not in ("geometric_median", "median"):
        raise ValueError(f"unknown inner {inner!r}; choose from geometric_median, median")
    bounds = [n * i // groups for i in range(groups + 1)]
    # scaled before the sum: huge values may not overflow it
    means = torch.stack([(updates[a:b] / (b - a)).sum(0) for a, b in pairwise(bounds)])
    return median(means) if inner == "median" else geometric_median(means)


def fltrust(updates: Tensor, *, root: Tensor) -> Tensor:
    """Weigh updates by their cosine with a root update, each scaled to the root's norm.

    Parameters
    ----------
    root
        The server's own update on its trusted data, (d,).

    Returns
    -------
    (d,); the root itself where no update points its way.

    References
    ----------
    Cao, Fang, Liu, Gong, FLTrust, NDSS 2021, section IV. Tolerates any number of Byzantine clients
    as far as the root data are representative.
    """
    if root.shape != updates.shape[1:]:
        raise ValueError(
            f"fltrust needs a root of shape {tuple(updates.shape[1:])}, got {tuple(root.shape)}"
        )
    length = torch.linalg.vector_norm(root.double())
    norms = norms_from(updates, torch.zeros_like(root)).clamp(min=TINY)
    scores = (updates.double() @ root.double() / (norms * length.clamp(min=TINY))).clamp(min=0)
    if not scores.any():
        return root.clone()
    weights = scores * length / norms / scores.sum()
    return (weights.to(updates.dtype)) @ updates


def foolsgold_memory(memory: Tensor | None, updates: Tensor) -> Tensor:
    """Add this round's updates to the sums; start anew where the number of rows changed."""
    if memory is None or memory.shape != updates.shape:
        return updates.double()
    return memory + updates.double()


def foolsgold_weights(updates: Tensor, *, memory: Tensor | None = None) -> Tensor:
    """Return each client's learning rate in [0, 1]; they need not add up to 1."""
    history = foolsgold_memory(memory, updates)
    unit = F.normalize(history, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    most = cosine.max(1).values
    ratio = most[:, None] / most[None, :].clamp(min=TINY)
    pardon = torch.where(most[:, None] < most[None, :], ratio, 1.0)
    rate = (1 - (cosine * pardon).fill_diagonal_(-torch.inf).max(1).values.clamp(min=0)).clamp(0, 1)
    rate = rate / rate.max().clamp(min=TINY)
    rate = rate.clamp(max=0.99)
    return (torch.log(rate / (1 - rate)) + 0.5).clamp(0, 1)


def foolsgold(updates: Tensor, *, memory: Tensor | None = None) -> Tensor:
    """Slow down clients whose accumulated updates point the same way as another's.

    Parameters
    ----------
    memory
        Sum of each client's past updates (n, d), float64; nothing at first. The rows of successive
        calls must belong to the same clients; where their number changes the memory starts anew,
        which a client that drops out can bring about.

    Returns
    -------
    (d,): the sum of the weighted updates, which the original does not divide by the weights' sum.

    References
    ----------
    Fung, Yoon, Beschastnikh, The Limitations of Federated Learning in Sybil Settings, RAID 2020,
    Algorithm 1. Punishes similar honest clients: not for IID data.
    """
    return foolsgold_weights(updates, memory=memory).to(updates.dtype) @ updates


def sign_shares(updates: Tensor) -> Tensor:
    """Return the share of positive, zero and negative coordinates of each row, (n, 3)."""
    signs = updates.sign()
    return torch.stack([(signs == s).double().mean(1) for s in (1, 0, -1)], 1)


def sign_guard_weights(
    updates: Tensor, *, low: float = 0.1, high: float = 3.0, share: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Weigh the kept updates, each clipped to the median norm."""
    from sklearn.cluster import MeanShift, estimate_bandwidth

    n, d = updates.shape
    norms = norms_from(updates, torch.zeros_like(updates[0]))
    typical = norms.median() if n % 2 else norms.sort().values[n // 2 - 1 : n // 2 + 1].mean()
    plausible = (norms > low * typical) & (norms < high * typical)
    width = max(1, round(share * d))
    start = int(torch.randint(0, d - width + 1, (1,), generator=generator))
    features = sign_shares(updates[:, start : start + width])
    points = (features / features.max(0).values.clamp(min=TINY)).cpu().numpy()
    bandwidth = estimate_bandwidth(points, quantile=0.5, random_state=0)
    if bandwidth > 0:
        labels = torch.from_numpy(MeanShift(bandwidth=bandwidth).fit(points).labels_)
        largest = labels.bincount().argmax()
        plausible = plausible & (labels == largest).to(plausible.device)
    if not plausible.any():
        raise ValueError(f"sign_guard kept none of {n} updates")
    scales = (typical / norms.clamp(min=TINY)).clamp(max=1)
    return torch.where(plausible, scales, 0.0) / plausible.sum()


def sign_guard(
    updates: Tensor, *, low: float = 0.1, high: float = 3.0, share: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Keep updates of plausible norm and of the largest cluster of sign statistics; clip, average.

    Parameters
    ----------
    low, high
        Norms between low and high times the median norm are plausible.
    share
        Share of coordinates, contiguous and drawn by ``generator``, whose signs are counted.

    References
    ----------
    Xu, Huang, Song, Lan, Byzantine-robust Federated Learning through Collaborative Malicious
    Gradient Filtering, ICDCS 2022 (SignGuard, plain variant).
    """
    weights = sign_guard_weights(updates, low=low, high=high, share=share, generator=generator)
    return weights.to(updates.dtype) @ updates


def hierarchical_clustering_krum_weights(
    updates: Tensor, *, f: int, clusters: int | None = None
) -> Tensor:
    """Return the weights of the chosen cluster's members."""
    from sklearn.cluster import AgglomerativeClustering

    n = len(updates)
    count = n - f if clusters is None else clusters
    if not 1 <= count <= n:
        raise ValueError(f"clusters of {n} updates need to be 1..{n}, got {count}")
    distances = squared_distances(updates).sqrt().cpu().numpy()
    fitted = AgglomerativeClustering(count, metric="precomputed", linkage="average")
    labels = torch.from_numpy(fitted.fit(distances).labels_)
    mixing = F.one_hot(labels, count).T.double()
    means = (mixing / mixing.sum(1, keepdim=True)).to(updates.device, updates.dtype) @ updates
    scores = krum_scores(squared_distances(means), min(f, max(0, (count - 3) // 2)))
    winner = int(lowest(scores, 1))
    return even((labels == winner).nonzero().flatten().to(updates.device), n)


def hierarchical_clustering_krum(updates: Tensor, *, f: int, clusters: int | None = None) -> Tensor:
    """Cluster the updates, represent each cluster by its mean, take Krum's choice of the means.

    An INTERPRETATION: of the paper that names it, only a second-hand description is known here.
    Agglomerative clustering, average linkage on Euclidean distances.

    Parameters
    ----------
    clusters
        How many; n - f unless given.

    References
    ----------
    Named by Yang, Luo, Dong, Li, Seesaw, arXiv 2410.05161; the full text was not available.
    """
    weights = hierarchical_clustering_krum_weights(updates, f=f, clusters=clusters)
    return weighted(updates, weights)
