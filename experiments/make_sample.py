"""Make the balanced FashionMNIST sample that ships with the package, from the full set.

``python -m experiments.make_sample --data-root FOLDER`` writes the npz beside the loaders: the
first 800 training and 150 test images of each class, in the order of the full set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedrobust.data import load

TARGET = Path(__file__).parents[1] / "fedrobust" / "data" / "fashionmnist_sample.npz"


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the sorted indices of the first ``count`` images of every class."""
    picks = [torch.nonzero(labels == c).flatten()[:count] for c in range(int(labels.max()) + 1)]
    return torch.cat(picks).sort().values


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root")
    full = load("fashionmnist", root=parser.parse_args().data_root)
    train = first_of_each(full.train_labels, 800)
    test = first_of_each(full.test_labels, 150)
    np.savez_compressed(
        TARGET,
        train_images=full.train_images[train, 0].numpy(),
        train_labels=full.train_labels[train].numpy().astype(np.uint8),
        test_images=full.test_images[test, 0].numpy(),
        test_labels=full.test_labels[test].numpy().astype(np.uint8),
    )


if __name__ == "__main__":
    main()
