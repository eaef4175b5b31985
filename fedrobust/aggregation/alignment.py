"""Rules that keep who is within a few deviations of the median: LASA by layers, AlignIns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedrobust.aggregation.columns import averaged, sign_sums
from fedrobust.aggregation.distances import clipping, middle, norms, products_with
from fedrobust.model_layers import Layers, checked_layers, checked_model, columns
from fedrobust.ranges import real

WEIGHTS = (2, 4)  # dimensions of a tensor that holds weights of connections, dense or convolution
ALIKE = 1e-9  # values that differ by less, of their size, differ by rounding alone


def lasa(
    updates: Tensor,
    *,
    layers: Layers,
    sparsity: float = 0.3,
    norm_radius: float = 1.0,
    sign_radius: float = 1.0,
) -> Tensor:
    """Average each layer over those whose norm and share of positive signs there are usual.

    Read from the authors' program, an interpretation where the paper may differ. Updates are cut to
    the median length, and of the weights of each the smallest are set to 0; then, layer by layer,
    whoever is more than a radius of standard deviations from the median of the norms, or of the
    signs' mean, is left out. The layer's mean is that of the cut and thinned updates. Where nobody
    is left all count. Values that are all alike have deviation 0 here (there: none is kept), and a
    layer of zeros has as many positive signs as negative ones.

    Parameters
    ----------
    layers
        (name, shape) of each tensor, in order: a run hands them in. Tensors of two or four
        dimensions are thinned together; biases and norms are not.
    sparsity
        Share of an update's weights that are set to 0, in [0, 1). Of equal ones all are.
    norm_radius, sign_radius
        lambda_n and lambda_s, positive: deviations at which a layer is left out.

    Raises
    ------
    ValueError
        For settings out of range, and layers that do not fill the update.

    References
    ----------
    Xu, Zhang, Hu, Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified
    Model Aggregation, WACV 2025 (arXiv 2409.01435), and the authors' program, algorithms/defense/
    lasa.py (sparsity 0.3, both radii 1). Its purity 0.5 (1 + (1 - sparsity) mean sign) is on a
    line with the mean sign, so that deviations are the same.
    """
    real(sparsity, "lasa", "sparsity", low=0)
    real(1 - sparsity, "lasa", "1 - sparsity", above=0)
    real(norm_radius, "lasa", "norm_radius", above=0)
    real(sign_radius, "lasa", "sign_radius", above=0)
    parts = checked_layers(layers, updates.shape[1], "lasa")
    lengths = norms(updates)
    factors = clipping(lengths, lengths.median()).to(updates)[:, None]
    places = columns(parts)
    weighty = [where for (_, shape), where in zip(parts, places, strict=True) if is_weight(shape)]
    floors = thinning(updates, weighty, sparsity)[:, None]
    result = torch.empty_like(updates[0])
    for (_, shape), where in zip(parts, places, strict=True):
        if where.start == where.stop:
            continue
        block = updates[:, where] * factors
        if is_weight(shape):
            block = torch.where(updates[:, where].abs() > floors, block, 0)
        result[where] = averaged(block[_usual(block, norm_radius, sign_radius)])
    return result


def is_weight(shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds weights, rather than biases or factors of a normalisation."""
    return len(shape) in WEIGHTS


def thinning(updates: Tensor, places: list[slice], sparsity: float) -> Tensor:
    """Return the magnitude of each update (n,) down to which its values at these places go."""
    total = sum(where.stop - where.start for where in places)
    kept = max(1, int(total * (1 - sparsity)))
    if not total or sparsity == 0:
        return updates.new_full((len(updates),), -1.0)
    floors = [
        kth_largest(torch.cat([row[where] for where in places]).abs(), kept) for row in updates
    ]
    return torch.stack(floors)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of some values (m,), as a tensor without dimensions."""
    place = len(values) - k
    if values.device.type == "cpu":  # numpy partitions three times as fast as torch selects
        return torch.tensor(np.partition(values.numpy(), place)[place], dtype=values.dtype)
    return values.kthvalue(place + 1).values


def deviations(values: Tensor) -> Tensor:
    """Return |value - median| over the standard deviation, (n,); 0 where all are alike."""
    spread = values.std(correction=0)
    if not spread > ALIKE * values.abs().max():
        return torch.zeros_like(values)
    return (values - middle(values)).abs() / spread


def _usual(block: Tensor, norm_radius: float, sign_radius: float) -> Tensor:
    """Return which rows (n,) are usual in a layer; all where none is."""
    signs = block.sign()
    shares = signs.sum(1).double() / signs.abs().sum(1).double().clamp(min=1)
    near = deviations(norms(block)) < norm_radius
    near &= deviations(shares.cpu()) < sign_radius
    return (near if bool(near.any()) else torch.ones_like(near)).to(block.device)


def alignins_weights(
    updates: Tensor,
    *,
    model: Tensor,
    share: float = 0.3,
    sign_radius: float = 1.0,
    direction_radius: float = 1.0,
) -> Tensor:
    """Average those that are to the model, and to the others' signs, about as all of them do.

    Two numbers of each update are compared with their medians: its cosine with the global model,
    and how many of the signs of its largest values are those of most clients. Whoever is a radius
    of standard deviations away is out; the others are cut to their median length and averaged.
    Where nobody is left the model stays. Against backdoors: attackers who are near half of the
    clients are the usual ones. Values that are all alike have deviation 0 here; there nobody is
    kept.

    Parameters
    ----------
    model
        The global model (d,): a run hands it in.
    share
        Of the coordinates, those largest in magnitude, whose signs are looked at, in (0, 1]; of
        equal ones all.
    sign_radius, direction_radius
        lambda_s and lambda_c, positive: deviations at which an update is out.

    Raises
    ------
    ValueError
        For settings out of range, or a model of another size.

    References
    ----------
    Xu, Zhang, Hu, Detecting Backdoor Attacks in Federated Learning via Direction Alignment
    Inspection, CVPR 2025 (arXiv 2503.07978): temporal direction alignment, masked principal sign
    alignment, median-based z-scores, clipping after filtering, as in the authors' program,
    src/aggregation.py (share 0.3, called sparsity; both radii 1). There sizes of data weigh.
    """
    real(share, "alignins", "share", above=0, high=1)
    real(sign_radius, "alignins", "sign_radius", above=0)
    real(direction_radius, "alignins", "direction_radius", above=0)
    centre = checked_model(model, updates.shape[1], "alignins").to(updates)
    lengths = norms(updates)
    kept = deviations(agreement(updates, share)) < sign_radius
    kept &= deviations(_cosines(updates, lengths, centre)) < direction_radius
    weights = torch.zeros(len(updates), dtype=torch.float64)
    if bool(kept.any()):
        factors = clipping(lengths, lengths[kept].median())
        weights[kept] = factors[kept] / int(kept.sum())
    return weights


def agreement(updates: Tensor, share: float) -> Tensor:
    """Return for each update how many signs of its largest values are the principal ones, (n,)."""
    principal = sign_sums(updates).sign()
    d = updates.shape[1]
    count = max(1, int(d * share))
    found = []
    for row in updates:
        sizes = row.abs()
        large = sizes >= kth_largest(sizes, count)
        found.append(((row.sign() == principal) & large).sum().double() / large.sum())
    return torch.stack(found).cpu()


def _cosines(updates: Tensor, lengths: Tensor, model: Tensor) -> Tensor:
    """Return each update's cosine with the model, (n,); 0 where either is zero."""
    size = norms(model[None])[0]
    if not size > 0:
        return torch.zeros_like(lengths)
    products = products_with(updates, (model.double() / size).to(model))
    return torch.where(lengths > 0, products / lengths, 0.0)
