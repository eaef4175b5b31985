"""Hold the engine beside the plain loop, step for step, in float64.

``python -m experiments.papers.alie.parity --data-root FOLDER`` trains CIFAR-10's network twice for
20 rounds of n = 51, m = 12, from the same weights on the same batches, each worker repeating its 8
batches as in the released program: once by ``plain``, once by the parts that every run of
fedrobust is made of. It prints the largest difference of a weight, relative to the largest
weight. About 3 minutes of one core a rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.papers.alie import plain
from experiments.papers.alie.table1 import PAPER, PROGRAM
from fedrobust.aggregation import aggregate
from fedrobust.attacks import craft
from fedrobust.data import Dataset, load
from fedrobust.models import build
from fedrobust.training import Recipe, StepState, take_step, train_local
from fedrobust.training.losses import cross_entropy
from fedrobust.vector import FlatModel

NETWORKS = {"alie_cnn": plain.cnn, "mlp": plain.mlp}
RULES = {"program": (PROGRAM, plain.PROGRAM), "paper": (PAPER, plain.PAPER)}
Order = list[list[np.ndarray]]  # worker -> round -> indices


@dataclass(frozen=True)
class Case:
    """What both sides train: data, network, initial weights and batches are its alone."""

    data: Dataset
    network: str
    order: Order
    setting: plain.Setting
    seed: int = 1

    @property
    def model(self) -> FlatModel:
        """The network, its pixels normalised by 0.5 and 0.5, in float64."""
        half = (0.5,) * self.data.shape[0]
        module = build(
            self.network, shape=self.data.shape, classes=10, mean=half, std=half, seed=self.seed
        )
        return in_float64(FlatModel(module))


def in_float64(model: FlatModel) -> FlatModel:
    """Turn a model into float64, which runs never use: its rounding hides what is looked for."""
    model.module.double()
    model.vector, model.gradient = model.vector.double(), model.gradient.double()
    offset = 0
    for p in model.module.parameters():
        place = slice(offset, offset + p.numel())
        p.data, p.grad = model.vector[place].view_as(p), model.gradient[place].view_as(p)
        offset += p.numel()
    return model


def case(data: Dataset, network: str, setting: plain.Setting, batch: int, rounds: int) -> Case:
    """Deal the images and draw each worker's batches, which repeat."""
    drawn = np.random.default_rng(1)
    dealt = plain.shares(len(data.train_labels), setting.n, drawn)
    order = [
        list(islice(plain.batches(share, batch, fixed=True, generator=drawn), rounds))
        for share in dealt
    ]
    return Case(data, network, order, setting)


def described(case: Case, rule: Any) -> Iterator[Tensor]:
    """Train by the plain loop; yield the weights (d,) after each round."""
    model, data = case.model, case.data
    images = data.train_images.double().div(255).sub(0.5).div(0.5)

    def taken(worker: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in worker:
            yield images[batch], data.train_labels[batch]

    workers = [taken(worker) for worker in case.order]
    yield from islice(
        plain.train(
            model.vector, model.shapes, NETWORKS[case.network], workers, rule, case.setting
        ),
        len(case.order[0]),
    )


def ours(case: Case, rule: dict[str, Any]) -> Iterator[Tensor]:
    """Train by the engine's local step, attack, rule and server step."""
    model, setting = case.model, case.setting
    weights, state = model.vector.clone(), StepState()
    attack = {"name": "alie", "z": setting.z, "sign": setting.sign}
    rule = rule if rule["name"] == "mean" else {**rule, "f": setting.m}
    for turn in range(len(case.order[0])):
        sent = torch.stack([update(case, model, weights, w[turn]) for w in case.order])
        own = sent[: setting.m].clone()
        sent[: setting.m] = craft(own, attack, n=setting.n, f=setting.m)
        step = aggregate(sent, rule)
        weights, state = take_step(
            weights, step, state, optimizer={"name": "sgd"}, lr=setting.lr,
            momentum=setting.momentum, schedule={"name": "constant"}, warmup=0,
            shapes=model.shapes,
        )  # fmt: skip
        yield weights


def update(case: Case, model: FlatModel, weights: Tensor, batch: np.ndarray) -> Tensor:
    """Return one worker's update (d,), by the loop that every client trains with."""

    def loss(module: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        # Clients see float32 pixels; these are the same 256 values, without its rounding.
        return cross_entropy(module, images.mul(255).round().double().div(255), labels)

    recipe = Recipe(mode="gradient", batch_size=len(batch))
    return train_local(
        model, weights, case.data.train_images, case.data.train_labels, recipe,
        generator=torch.Generator(), loss=loss,
        draw=lambda count, recipe, generator: iter([torch.from_numpy(batch)]),
    )[0]  # fmt: skip


def differences(case: Case, kind: str, name: str) -> list[float]:
    """Return the largest difference of a weight after each round, relative to the largest one."""
    specs, rules = RULES[kind]
    spec, rule = specs[name], rules[name]
    pairs = zip(described(case, rule), ours(case, spec), strict=True)
    return [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]


def main() -> None:
    """Print the difference after the last round, rule by rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="kind and rule, as program/krum")
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    made = case(
        load("cifar10", root=given.data_root), "alie_cnn", plain.Setting(), 128, given.rounds
    )
    for kind, (table, _) in RULES.items():
        for name in table:
            if given.only in f"{kind}/{name}":
                print(f"{kind}/{name}: {differences(made, kind, name)[-1]:.1e}", flush=True)


if __name__ == "__main__":
    main()
