"""What a node keeps between messages: the experiment, its data, a scratch model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedrobust import data, models
from fedrobust.config import Experiment, from_run_config
from fedrobust.vector import FlatModel


@dataclass(frozen=True)
class Workshop:
    """One experiment, set up on one node.

    Attributes
    ----------
    images, labels
        Each client's share: slices of one reordered training set, so that no round gathers them.
    model
        Scratch model: whoever trains overwrites it.
    """

    experiment: Experiment
    classes: int
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    model: FlatModel

    def share(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's own images and labels."""
        return self.images[client], self.labels[client]


def open_workshop(run_config: Mapping[str, Any]) -> Workshop:
    """Return the workshop of a run; built once per process and run configuration."""
    return _open(tuple(sorted(run_config.items())))


@lru_cache(maxsize=1)
def _open(items: tuple[tuple[str, Any], ...]) -> Workshop:
    run_config = dict(items)
    experiment = from_run_config(run_config)
    dataset = data.load(experiment.data, root=run_config.get("data-root") or None)
    shares = data.partition(
        dataset.train_labels,
        experiment.partition,
        clients=experiment.clients,
        seed=experiment.seed,
    )
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    order, sizes = torch.cat(shares), [len(share) for share in shares]
    images = dataset.train_images[order].split(sizes)
    labels = dataset.train_labels[order].split(sizes)
    return Workshop(experiment, dataset.classes, images, labels, FlatModel(module))
