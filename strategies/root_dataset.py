"""Data of the server's own, for rules that trust it: FLTrust's root update, Zeno's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.data import Dataset
from fedrobust.experiment.schema import Experiment
from fedrobust.seeds import generator
from fedrobust.training import train_local
from fedrobust.training.tasks import loss_of, measured
from fedrobust.vector import FlatModel


@dataclass(frozen=True)
class OwnData:
    """A few training images that the server holds itself.

    Attributes
    ----------
    experiment
        ``server.root_images`` says how many: the same ones in all rounds for the root update (Cao
        et al. 2021, section IV-B), fresh ones each round for the loss (Xie et al. 2019, section 4).
    dataset
        They are drawn from its training set, as clients' shares are.
    model
        Scratch model: its parameters are overwritten.
    secret
        What the choice of the images follows from; a client that knew them could please the rule
        on them alone.
    """

    experiment: Experiment
    dataset: Dataset
    model: FlatModel
    secret: int

    def offers(self, vector: Tensor, server_round: int) -> dict[str, Callable[[], Any]]:
        """Return what a rule may ask for at the global parameters (d,): computed when asked."""
        return {
            "root": lambda: self.root(vector, server_round),
            "loss": lambda: self.loss(vector, server_round),
        }

    def root(self, vector: Tensor, server_round: int) -> Tensor:
        """Train as an honest client would, on the server's own images: (d,)."""
        images, labels = self._draw(0)
        source = generator(self.secret, "root batches", round=server_round)
        recipe, loss = self.experiment.training, loss_of(self.experiment.loss)
        return train_local(self.model, vector, images, labels, recipe, generator=source, loss=loss)[
            0
        ]

    def loss(self, vector: Tensor, server_round: int) -> Callable[[Tensor], float]:
        """Return step (d,) -> loss of the parameters minus that step, on fresh images."""
        images, labels = self._draw(server_round)

        def after(step: Tensor) -> float:
            self.model.load(vector - step)
            found = measured(self.model.module, images, labels, loss=self.experiment.loss)
            return float(found["loss"])  # type: ignore[arg-type]

        return after

    def _draw(self, server_round: int) -> tuple[Tensor, Tensor]:
        labels = self.dataset.train_labels
        source = generator(self.secret, "root images", round=server_round)
        chosen = torch.randperm(len(labels), generator=source)
        chosen = chosen[: self.experiment.server.root_images]
        return self.dataset.train_images[chosen], labels[chosen]
