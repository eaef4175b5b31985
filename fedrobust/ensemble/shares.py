"""Who has which training images: the nodes, and the attacker."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.data import Dataset, cut, partition
from fedrobust.data.sets import DataError
from fedrobust.experiment.schema import Experiment
from fedrobust.seeds import generator

EVERYTHING = ("central", "full_data")


def shares_of(experiment: Experiment, dataset: Dataset) -> list[Tensor]:
    """Return one index tensor a node into the training set.

    Disjoint by the experiment's partition, of the whole set without a plan; all of the defenders'
    images for every node of "central" and "full_data".

    Raises
    ------
    DataError
        If more images are asked for than there are.
    """
    if not experiment.ensemble.paradigm:
        n, seed = experiment.clients, experiment.seed
        return cut(dataset, experiment.partition, clients=n, seed=seed)
    pool = defenders_pool(experiment, dataset)
    if experiment.ensemble.paradigm in EVERYTHING:
        return [pool] * experiment.clients
    owners = None if dataset.train_clients is None else dataset.train_clients[pool]
    parts = partition(
        dataset.train_labels[pool],
        experiment.partition,
        clients=experiment.clients,
        seed=experiment.seed,
        owners=owners,
        inputs=dataset.train_images[pool],
    )
    return [pool[part] for part in parts]


def defenders_pool(experiment: Experiment, dataset: Dataset) -> Tensor:
    """Return the images that the nodes share: all in use, or the first half of them."""
    used = _used(experiment, dataset)
    return used[: len(used) // 2] if experiment.transfer.data == "disjoint" else used


def attacker_share(experiment: Experiment, dataset: Dataset) -> Tensor:
    """Return the images on which the surrogates are trained; see ``Transfer.data``."""
    used = _used(experiment, dataset)
    if experiment.transfer.data == "disjoint":
        return used[len(used) // 2 :]
    if experiment.transfer.data == "share":
        # The attacker's own seed: its images are kept, and used against defenders of every seed.
        source = generator(experiment.transfer.seed, "attacker's share")
        order = torch.randperm(len(used), generator=source)
        return used[order[: max(1, len(used) // experiment.transfer.parts)]]
    return used


def split(share: Tensor, validation: float, *, seed: int, node: int) -> tuple[Tensor, Tensor]:
    """Cut a node's share into its training and its validation part, disjoint."""
    source = generator(seed, "validation", client=node)
    order = share[torch.randperm(len(share), generator=source)]
    count = len(share) - round(validation * len(share))
    return order[:count], order[count:]


def _used(experiment: Experiment, dataset: Dataset) -> Tensor:
    """Return the images in use, in an order that is the same for every seed."""
    have, want = len(dataset.train_labels), experiment.ensemble.train_images
    if want > have:
        raise DataError(f"ensemble.train_images asks for {want}, {dataset.name!r} has {have}")
    order = torch.randperm(have, generator=generator(0, "images in use"))
    return order[: want or have]
