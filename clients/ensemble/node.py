"""One experiment as the members of its ensemble see it, set up once on a node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clients.node import Host, own_share
from fedrobust import data, models
from fedrobust.data.own import load_own
from fedrobust.ensemble import member as training
from fedrobust.ensemble.practice import practice_of
from fedrobust.ensemble.shares import shares_of, split
from fedrobust.experiment.schema import Experiment, NodeSettings
from fedrobust.seeds import derive


@dataclass(frozen=True, eq=False)
class EnsembleNode:
    """The data at hand and who has which of them.

    Attributes
    ----------
    output
        Where tuning keeps what it found; None: nowhere.
    """

    experiment: Experiment
    dataset: data.Dataset
    shares: tuple[Tensor, ...]
    device: torch.device
    output: Path | None = None

    def data_of(self, client: int) -> training.TrainValSplit:
        """Return a member's own training and validation images."""
        plan, d = self.experiment.ensemble, self.dataset
        cut = {"seed": self.experiment.seed, "node": client}
        taught, held = split(self.shares[client], plan.validation, **cut)
        return training.TrainValSplit(
            d.train_images[taught], d.train_labels[taught],
            d.train_images[held], d.train_labels[held],
        )  # fmt: skip

    def settings(self, client: int, epochs: int) -> training.EpochSettings:
        """Return what holds for all epochs of a member's training."""
        plan, seed = self.experiment.ensemble, self.experiment.seed
        return training.EpochSettings(
            epochs=epochs,
            batch_size=plan.batch_size,
            augment=plan.augment,
            seed=seed,
            client=client,
            practice=practice_of(plan),
            loss=self.experiment.loss,
        )

    def module(self, node: NodeSettings, client: int) -> nn.Module:
        """Build a member's network with initial weights of its own."""
        seed = derive(self.experiment.seed, "member", client=client)
        return models.build_for(node.model, self.dataset, seed=seed).to(self.device)


def make_ensemble_node(experiment: Experiment, host: Host | None = None) -> EnsembleNode:
    """Load the data of an ensemble's members and give each its share."""
    host = host or Host()
    device = torch.device(host.device)
    if host.own:
        dataset = load_own(host.own, name=experiment.data, root=host.data_root or None)
        shares = own_share(experiment, dataset, host.client)
    else:
        dataset = data.load(experiment.data, root=host.data_root or None)
        shares = list(shares_of(experiment, dataset))
    output = Path(host.output) if host.output else None
    return EnsembleNode(experiment, dataset.to(device), tuple(shares), device, output)
