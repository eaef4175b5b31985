"""What a node keeps between messages: the experiment, its data, a scratch model.

A node is made once and handed to its handlers. Nothing here is kept by the process: see
``clients.registry`` for the processes that must keep a node from message to message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedrobust import data, models
from fedrobust.data.own import load_own
from fedrobust.ensemble import shares_of
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import Wire, wire_of
from fedrobust.models.batchnorm import read_statistics
from fedrobust.simulation import stragglers
from fedrobust.training import Recipe
from fedrobust.training.losses import Loss, cross_entropy
from fedrobust.training.tasks import loss_of
from fedrobust.vector import FlatModel

ROLE = "role"  # of a real node, in its own configuration: "honest" or "malicious"


@dataclass(frozen=True)
class Host:
    """The machine that a node is on, as its owner describes it.

    Attributes
    ----------
    data_root
        Where the public data sets are; "" for the usual place.
    device
        "cpu", "cuda", "cuda:1", ...
    own
        Path of data of the node's own; "": the node holds its share of a public set.
    client
        Which client the node is; of interest with data of its own alone.
    output
        Where members of an ensemble keep what their tuning found; "": nowhere.
    """

    data_root: str = ""
    device: str = "cpu"
    own: str = ""
    client: int = 0
    output: str = ""


def host_of(run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> Host:
    """Read where a node is.

    A real node's own configuration may name data of its own (``data``), where the public sets are
    on its machine (``data-root``), and which ``device`` it computes on; the run's configuration
    comes from the server, and gives way to it.
    """
    settings = {**run_config, **{k: node_config[k] for k in ("data-root", "device")
                                 if k in node_config}}  # fmt: skip
    own = str(node_config.get("data", ""))
    return Host(
        data_root=str(settings.get("data-root") or ""),
        device=str(settings.get("device") or "cpu"),
        own=own,
        # 0 for all others: clients of one process that differ in their number alone share one node.
        client=int(node_config["partition-id"]) if own else 0,
        output=str(run_config.get("output") or ""),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One experiment, set up on one node.

    Attributes
    ----------
    experiment
        What is run.
    classes
        Of the data set.
    images, labels
        Each client's share: slices of one reordered training set, so that no round gathers them.
        Under a redundancy scheme there is one share, the whole set.
    model
        Scratch model: whoever trains overwrites it.
    groups
        Each client's group.
    statistics
        BatchNorm's running statistics (b,) of the fresh model; empty without BatchNorm.
    wire
        How updates travel.
    loss
        Of a module, its inputs and its targets.
    draws
        Whether training may draw from torch's own generators: a model or a loss of a user's own.
    kept
        What a handler keeps here from message to message, by name: it lives as long as the node.
    """

    experiment: Experiment
    classes: int
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    model: FlatModel
    groups: tuple[str, ...]
    statistics: Tensor
    wire: Wire
    loss: Loss = cross_entropy
    draws: bool = False
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def share(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's own images and labels."""
        return self.images[client], self.labels[client]

    def recipe(self, client: int, server_round: int) -> Recipe:
        """Return how a client trains in a round."""
        return stragglers.recipe_of(self.experiment, self.groups[client], server_round)


def make_node(experiment: Experiment, host: Host | None = None) -> Node:
    """Load the data, cut them into shares, and build the scratch model.

    Raises
    ------
    OSError
        If the data are not there.
    """
    host = host or Host()
    device = torch.device(host.device)
    dataset, shares = _data(experiment, host)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    model = FlatModel(models.with_policy(module, experiment.batchnorm).to(device))
    order, sizes = torch.cat(shares), [len(share) for share in shares]
    return Node(
        experiment=experiment,
        classes=dataset.classes,
        images=dataset.train_images[order].to(device).split(sizes),
        labels=dataset.train_labels[order].to(device).split(sizes),
        model=model,
        groups=stragglers.assign(experiment),
        statistics=read_statistics(model.module),
        wire=wire_of(experiment, model.sizes),
        loss=loss_of(experiment.loss),
        draws=isinstance(models.MODELS.get(experiment.model), models.GivenModel),
    )


def _data(experiment: Experiment, host: Host) -> tuple[data.Dataset, list[Tensor]]:
    """Return the data at hand, and which of them each client holds."""
    if host.own:
        dataset = load_own(host.own, name=experiment.data, root=host.data_root or None)
        return dataset, own_share(experiment, dataset, host.client)
    dataset = data.load(experiment.data, root=host.data_root or None)
    # The server measures on these: no client may train on them.
    dataset = data.set_aside(dataset, experiment.server.validation, seed=experiment.seed)
    if experiment.mode == "redundancy":  # every worker has the whole set
        return dataset, [torch.arange(len(dataset.train_labels))]
    return dataset, shares_of(experiment, dataset)


def own_share(experiment: Experiment, dataset: data.Dataset, client: int) -> list[Tensor]:
    """Give one client all images of a data set of its own, and the others none."""
    shares = [torch.arange(0)] * experiment.clients
    shares[client] = torch.arange(len(dataset.train_labels))
    return shares
