"""Examples that the server holds: a validation set, and test examples as each client has them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedrobust.data.partitions import cut
from fedrobust.data.sets import DataError, Dataset
from fedrobust.experiment.schema import Experiment
from fedrobust.seeds import generator


def set_aside(dataset: Dataset, share: float, *, seed: int) -> Dataset:
    """Take a share of the training examples away from all clients, for validation.

    Parameters
    ----------
    share
        In [0, 1); 0 returns the set as it is.
    seed
        Which examples are taken follows from it.

    Raises
    ------
    DataError
        If nothing would be left on one side.
    """
    if not share:
        return dataset
    count = len(dataset.train_labels)
    order = torch.randperm(count, generator=generator(seed, "validation set"))
    taken = round(share * count)
    if not 0 < taken < count:
        raise DataError(f"server.validation = {share:g} of {count} examples leaves a side empty")
    # Sorted: in the order in which the data came.
    held, left = order[:taken].sort().values, order[taken:].sort().values
    owners = dataset.train_clients
    return replace(
        dataset,
        train_images=dataset.train_images[left],
        train_labels=dataset.train_labels[left],
        train_clients=None if owners is None else owners[left],
        validation=(dataset.train_images[held], dataset.train_labels[held]),
    )


def examples_of(experiment: Experiment, dataset: Dataset) -> Tensor:
    """Return how much each test example counts for each client, (n, N); rows sum to one.

    Where the data come with their clients, a client's are those of the owners that it holds.
    Otherwise each class counts as often as the client has it: the expected accuracy on examples
    that are divided over the classes as its own.

    Raises
    ------
    DataError
        If the targets are no classes and no owners are known, or a client has no test example.
    """
    e = experiment
    shares = cut(dataset, e.partition, clients=e.clients, seed=e.seed)
    train, test = dataset.train_labels.cpu(), dataset.test_labels.cpu()
    if e.partition["name"] == "natural" and dataset.test_clients is not None:
        assert dataset.train_clients is not None, "the partition natural asks for owners"
        owned = [dataset.train_clients.cpu()[share.cpu()].unique() for share in shares]
        counts = torch.stack([torch.isin(dataset.test_clients.cpu(), own) for own in owned])
    elif dataset.holds_classes:
        held = torch.stack([train[s.cpu()].bincount(minlength=dataset.classes) for s in shares])
        # A class without test examples is never looked up below; 1 only keeps 0 out of the divisor.
        there = test.bincount(minlength=dataset.classes).clamp_min(1)
        counts = (held.double() / there)[:, test]
    else:
        raise DataError("metrics by client need classes, or data that say whose each example is")
    total = counts.double().sum(1, keepdim=True)
    if not bool((total > 0).all()):
        raise DataError(f"client {int((total == 0).nonzero()[0, 0])} has no test example")
    return counts.double() / total
