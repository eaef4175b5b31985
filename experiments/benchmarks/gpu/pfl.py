"""The CIFAR-10 task of pfl-research's benchmark, IID and without privacy.

1,000 clients x 50 images, 50 of them a round, one pass in batches of 10 at a rate of 0.1, the
server takes the mean (rate 1): ``benchmarks/image_classification/configs/baseline.yaml`` of
github.com/apple/pfl-research. Their network has dropout, which no stack draws: it runs one by one;
without dropout both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from experiments.benchmarks.gpu import images
from experiments.benchmarks.gpu.networks import NETWORKS
from experiments.benchmarks.gpu.plan import Cell, Row, Scale
from experiments.benchmarks.gpu.runs import timed
from fedrobust import plugins
from fedrobust.experiment.load import from_dict
from fedrobust.plugins import Part

ROUNDS = 1500


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield some rounds of each way, then the whole task."""
    few = scale.of(30, 3)
    for model, cohort in ("plain_cnn", "vmap"), ("plain_cnn", "off"), ("dropout_cnn", "off"):
        yield f"{few} rounds, {model}, {cohort}", partial(measured, model, cohort, few)
    whole = scale.of(ROUNDS, 4)
    yield f"{whole} rounds, plain_cnn, vmap", partial(measured, "plain_cnn", "vmap", whole)


def measured(model: str, cohort: str, rounds: int, scale: Scale) -> Row:
    """Run the task for some rounds."""
    clients, asked, each = scale.of((1000, 50, 50), (20, 5, 10))
    task = {
        "model": model,
        "clients": clients,
        "participation": asked / clients,
        "rounds": rounds,
        "training": {"mode": "update", "epochs": 1, "batch_size": scale.of(10, 5), "lr": 0.1,
                     "cohort": cohort},
    }  # fmt: skip
    return run(scale, task, clients * each)


def run(scale: Scale, task: dict[str, Any], count: int) -> Row:
    """Run federated averaging with one of ``NETWORKS`` on ``count`` images of CIFAR-10."""
    averaging = {
        "byzantine": 0,
        "seed": 1,
        "rule": "mean",
        "attack": "none",
        "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 10**6},
    }
    with ExitStack() as stack:
        name, told = stack.enter_context(images.cifar10(scale, count))
        made = Part("model", task["model"], NETWORKS[task["model"]], "the benchmark")
        stack.enter_context(plugins.installed(made))
        return timed(from_dict(averaging | {"data": name} | task), scale) | {"data": told}
