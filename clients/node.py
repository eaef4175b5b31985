"""What a node keeps between messages: the experiment, its data, a scratch model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedrobust import data, models
from fedrobust.data.own import load_own
from fedrobust.ensemble import shares_of
from fedrobust.experiment.load import from_run_config
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import Wire, wire_of
from fedrobust.models.batchnorm import read_statistics
from fedrobust.simulation import stragglers
from fedrobust.training import Recipe
from fedrobust.vector import FlatModel

OWN = ("data-root", "device")  # of a real node, in its own configuration
ROLE = "role"  # of a real node, in its own configuration: "honest" or "malicious"


@dataclass(frozen=True)
class Node:
    """One experiment, set up on one node.

    Attributes
    ----------
    images, labels
        Each client's share: slices of one reordered training set, so that no round gathers them.
        Under a redundancy scheme there is one share, the whole set.
    model
        Scratch model: whoever trains overwrites it.
    groups
        Each client's group.
    rows
        (clients, d): where updates lie that need not outlive their round. Fresh memory for each
        update costs more than the update; rows that are never touched take none.
    statistics
        BatchNorm's running statistics (b,) of the fresh model; empty without BatchNorm.
    wire
        How updates travel.
    """

    experiment: Experiment
    classes: int
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    model: FlatModel
    groups: tuple[str, ...]
    rows: Tensor
    statistics: Tensor
    wire: Wire

    def share(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's own images and labels."""
        return self.images[client], self.labels[client]

    def recipe(self, client: int, round: int) -> Recipe:
        """Return how a client trains in a round."""
        return stragglers.recipe_of(self.experiment, self.groups[client], round)


def open_node(run_config: Mapping[str, Any], node_config: Mapping[str, Any] | None = None) -> Node:
    """Return the node of a run; built once per process and configuration.

    A real node's own configuration may name data of its own (``data``), or where the public sets
    are on its machine (``data-root``), and which ``device`` it computes on; the run's configuration
    comes from the server and names none of them.
    """
    node = node_config or {}
    items = settled(run_config, node)
    if "data" in node:
        return _open_own(items, str(node["data"]), _number(node))
    return _open(items)


def settled(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any]
) -> tuple[tuple[str, Any], ...]:
    """Return a run's configuration, sorted, with what the node's owner says about the machine."""
    own = {key: node_config[key] for key in OWN if key in node_config}
    return tuple(sorted({**run_config, **own}.items()))


def _number(node_config: Mapping[str, Any]) -> int:
    return int(node_config["partition-id"])


@lru_cache(maxsize=1)
def _open_own(items: tuple[tuple[str, Any], ...], path: str, client: int) -> Node:
    """Set up a node that holds one client's data and nobody else's."""
    experiment = from_run_config(dict(items))
    device = torch.device(str(dict(items).get("device") or "cpu"))
    dataset = load_own(path, name=experiment.data).to(device)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    images = [dataset.train_images[:0]] * experiment.clients
    labels = [dataset.train_labels[:0]] * experiment.clients
    images[client], labels[client] = dataset.train_images, dataset.train_labels
    model = FlatModel(models.with_policy(module, experiment.batchnorm).to(device))
    return Node(
        experiment,
        dataset.classes,
        tuple(images),
        tuple(labels),
        model,
        stragglers.assign(experiment),
        model.vector.new_empty(experiment.clients, model.d),
        read_statistics(model.module),
        wire_of(experiment, model.sizes),
    )


@lru_cache(maxsize=1)
def _open(items: tuple[tuple[str, Any], ...]) -> Node:
    run_config = dict(items)
    experiment = from_run_config(run_config)
    dataset = data.load(experiment.data, root=run_config.get("data-root") or None)
    shares = _shares(experiment, dataset)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    device = torch.device(run_config.get("device") or "cpu")
    model = FlatModel(models.with_policy(module, experiment.batchnorm).to(device))
    order, sizes = torch.cat(shares), [len(share) for share in shares]
    return Node(
        experiment,
        dataset.classes,
        dataset.train_images[order].to(device).split(sizes),
        dataset.train_labels[order].to(device).split(sizes),
        model,
        stragglers.assign(experiment),
        model.vector.new_empty(experiment.clients, model.d),
        read_statistics(model.module),
        wire_of(experiment, model.sizes),
    )


def _shares(experiment: Experiment, dataset: data.Dataset) -> list[Tensor]:
    """Cut the training set into the clients' shares; under a scheme every worker has all of it."""
    if experiment.redundancy.name:
        return [torch.arange(len(dataset.train_labels))]
    return shares_of(experiment, dataset)
