"""Rules that cluster the updates: SignGuard, FLAME, hierarchical clustering with Krum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrobust.aggregation.distances import (
    TINY,
    centred_gram,
    clipping,
    cosine_distances,
    lowest,
    middle,
    norms,
    squared_distances,
    squared_from,
)
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.selection import even, krum_scores
from fedrobust.failures import Refusal
from fedrobust.ranges import real, whole


def sign_shares(updates: Tensor) -> Tensor:
    """Return the share of positive, zero and negative coordinates of each row, (n, 3)."""
    width = updates.shape[1]
    positive, negative = (updates > 0).sum(1), (updates < 0).sum(1)
    return torch.stack([positive, width - positive - negative, negative], 1).double() / width


def sign_guard_weights(
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
    from sklearn.cluster import MeanShift, estimate_bandwidth

    n, d = updates.shape
    real(low, "sign_guard", "low", low=0)
    real(high, "sign_guard", "high", low=low)
    real(share, "sign_guard", "share", above=0, high=1)
    lengths = norms(updates)
    typical = middle(lengths)
    # Bounds included: where most updates are zero, zeros are what is plausible.
    plausible = (lengths >= low * typical) & (lengths <= high * typical)
    width = max(1, round(share * d))
    start = int(torch.randint(0, d - width + 1, (1,), generator=generator))
    features = sign_shares(updates[:, start : start + width])
    points = (features / features.max(0).values.clamp(min=TINY)).cpu().numpy()
    # Without a state of its own sklearn would draw from numpy's global generator.
    bandwidth = estimate_bandwidth(points, quantile=0.5, random_state=0)
    # 0 where the statistics coincide, and below four updates: MeanShift refuses it.
    if bandwidth > 0:
        labels = torch.from_numpy(MeanShift(bandwidth=bandwidth).fit(points).labels_)
        largest = labels.bincount().argmax()
        plausible = plausible & (labels == largest)
    if not plausible.any():
        raise Refusal(f"sign_guard kept none of {n} updates")
    return torch.where(plausible, clipping(lengths, typical), 0.0) / plausible.sum()


def flame_step(
    updates: Tensor, *, noise: float = 0.001, generator: torch.Generator | None = None
) -> Outcome:
    """Keep the majority cluster by angle, clip to the median norm, average, add noise.

    HDBSCAN on cosine distances with clusters of more than n / 2; the median is over all updates.

    Parameters
    ----------
    noise
        lambda: the noise's standard deviation is lambda times the median norm; sqrt(2 ln(1.25 /
        delta)) / epsilon for differential privacy, about 0.001 for images.

    Raises
    ------
    ValueError
        If no cluster holds a majority, or for negative noise.

    References
    ----------
    Nguyen et al., FLAME: Taming Backdoors in Federated Learning, USENIX Security 2022, Algorithm 1.
    Needs f < n / 2.
    """
    from sklearn.cluster import HDBSCAN

    real(noise, "flame", "noise", low=0)
    n, lengths = len(updates), norms(updates)
    clustering = HDBSCAN(
        min_cluster_size=n // 2 + 1,
        min_samples=1,
        allow_single_cluster=True,
        metric="precomputed",
        copy=True,
    )
    labels = clustering.fit(cosine_distances(updates).numpy()).labels_
    # Clusters of more than n / 2: there is one at most, number 0; -1 is noise.
    kept = torch.from_numpy(labels == 0)
    if not bool(kept.any()):
        raise Refusal(f"flame found no majority among {n} updates")
    bound = middle(lengths)
    weights = torch.where(kept, clipping(lengths, bound), 0.0) / int(kept.sum())
    result = weighted(updates, weights)
    if noise:
        # Drawn on the CPU, so that the noise is the same wherever the updates are.
        draw = torch.randn(result.shape, generator=generator, dtype=result.dtype)
        result = result + float(noise * bound) * draw.to(result)
    return Outcome(result, None, weights)


def hierarchical_clustering_krum_weights(
    updates: Tensor, *, f: int, clusters: int | None = None
) -> Tensor:
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
    from sklearn.cluster import AgglomerativeClustering

    n = len(updates)
    count = n - f if clusters is None else clusters
    whole(count, f"hierarchical_clustering_krum of {n} updates", "clusters", low=1, high=n)
    distances = squared_distances(updates).sqrt().numpy()
    fitted = AgglomerativeClustering(count, metric="precomputed", linkage="average")
    labels = torch.from_numpy(fitted.fit(distances).labels_)
    mixing = F.one_hot(labels, count).T.double()
    mixing = mixing / mixing.sum(1, keepdim=True)
    between = squared_from(centred_gram(updates, mixing))  # of the clusters' means
    # Krum among the means: it bears (count - 3) / 2 of them at most, whatever f is of updates.
    winner = int(lowest(krum_scores(between, min(f, max(0, (count - 3) // 2))), 1))
    return even((labels == winner).nonzero().flatten(), n)
