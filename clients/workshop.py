"""What a node keeps between messages: the experiment, its data, a scratch model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedrobust import data, fleet, models
from fedrobust.config import Experiment, from_run_config
from fedrobust.distributed import shares_of
from fedrobust.training import Recipe
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
    groups
        Each client's group.
    rows
        (clients, d): where updates lie that need not outlive their round. Fresh memory for each
        update costs more than the update; rows that are never touched take none.
    """

    experiment: Experiment
    classes: int
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    model: FlatModel
    groups: tuple[str, ...]
    rows: Tensor

    def share(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's own images and labels."""
        return self.images[client], self.labels[client]

    def recipe(self, client: int, round: int) -> Recipe:
        """Return how a client trains in a round."""
        return fleet.recipe_of(self.experiment, self.groups[client], round)


def open_workshop(run_config: Mapping[str, Any]) -> Workshop:
    """Return the workshop of a run; built once per process and run configuration."""
    return _open(tuple(sorted(run_config.items())))


@lru_cache(maxsize=1)
def _open(items: tuple[tuple[str, Any], ...]) -> Workshop:
    run_config = dict(items)
    experiment = from_run_config(run_config)
    dataset = data.load(experiment.data, root=run_config.get("data-root") or None)
    shares = shares_of(experiment, dataset)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    device = torch.device(run_config.get("device") or "cpu")
    model = FlatModel(module.to(device))
    order, sizes = torch.cat(shares), [len(share) for share in shares]
    return Workshop(
        experiment,
        dataset.classes,
        dataset.train_images[order].to(device).split(sizes),
        dataset.train_labels[order].to(device).split(sizes),
        model,
        fleet.assign(experiment),
        model.vector.new_empty(experiment.clients, model.d),
    )
