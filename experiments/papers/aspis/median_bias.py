"""Measure what a rule over the files of a round does to the gradient, with nobody Byzantine.

``python -m experiments.papers.aspis.median_bias RUN --data-root DATA`` takes the model that a run's
checkpoint holds and compares, over batches of the training set, each rule's aggregate with the mean
gradient of many samples: ``length`` is the projection on that gradient in units of its norm (1
keeps the rate, 0.5 halves it), ``cosine`` the angle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clients.redundancy.experiment_gradients import gradients_together
from fedrobust import aggregation, data, models
from fedrobust.experiment.load import from_dict, read
from fedrobust.runs import checkpoint
from fedrobust.runs.folder import CHECKPOINT
from fedrobust.vector import FlatModel

# (files, samples a file, rule): Aspis+ with files of three sizes, and DETOX.
MEDIAN = {"name": "median"}
CASES: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (35, 11, MEDIAN),
    (35, 44, MEDIAN),
    (35, 176, MEDIAN),
    (35, 11, {"name": "trimmed_mean", "f": 1}),
    (35, 11, {"name": "mean"}),
    (5, 75, {"name": "median_of_means", "groups": 3, "inner": "median"}),
)
TIMES = 10  # batches of each case
MANY = 12_320  # samples of the gradient that all are compared with


def rows(run: Path, data_root: str | None) -> Iterator[dict[str, Any]]:
    """Yield one line a case."""
    e = from_dict(read(run / "config.toml"))
    dataset = data.load(e.data, root=data_root)
    model = FlatModel(models.build_for(e.model, dataset, seed=e.seed))
    tree = checkpoint.load(run / CHECKPOINT)
    vector: Tensor = tree["arrays"]["model"]
    order = torch.randperm(len(dataset.train_labels), generator=torch.Generator().manual_seed(1))

    def gradients(first: int, files: int, samples: int) -> Tensor:
        chosen = order[first : first + files * samples].view(files, samples)
        images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
        return gradients_together(model, vector, images, labels)

    true = gradients(0, MANY // 176, 176).mean(0)
    for files, samples, rule in CASES:
        found = []
        for place in range(TIMES):
            start = place * (len(order) - files * samples) // TIMES
            made = aggregation.build(rule).apply(gradients(start, files, samples)).aggregate
            length = float(made @ true / (true @ true))
            found.append((length, length * float(true.norm() / made.norm())))
        length, cosine = torch.tensor(found).mean(0).tolist()
        yield {
            "round": tree["round"],
            "rule": rule["name"],
            "files": files,
            "samples": samples,
            "length": round(length, 3),
            "cosine": round(cosine, 3),
        }


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of figure13.toml")
    parser.add_argument("--data-root")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(options.run, options.data_root):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
