"""The images that the cases train on: the full sets, or a stand-in that says it is one.

Times need images of the right number and shape; accuracies need the real ones. Where the full sets
are not at hand, a sample of them (``SAMPLE``, which the packed archive brings along), or the
FashionMNIST sample that ships with the project, stands in, each image as often as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.gpu.plan import Scale
from fedrobust import plugins
from fedrobust.data import Dataset, load
from fedrobust.data.sets import CIFAR, DataError, fashionmnist_sample
from fedrobust.plugins import Part

SAMPLE = "cifar10_sample.npz"
FULL = 50_000  # images of CIFAR-10's training set


@contextmanager
def cifar10(scale: Scale, count: int = FULL) -> Iterator[tuple[str, str]]:
    """Put CIFAR-10 of ``count`` training images, or what stands in, into the table of data sets.

    Where the scale pretends, the smallest stands in.

    Yields
    ------
    name, told : str
        Its name for configurations, and what it is, for the results.
    """
    dataset, told = found(None if scale.pretend else scale.data_root)
    cut = _sized(dataset, count, tested=scale.of(len(dataset.test_labels), 50))
    with plugins.installed(Part("data", "gpu-images", lambda: cut, "the benchmark")):
        yield "gpu-images", told if count <= len(dataset.train_labels) else f"{told}, repeated"


@cache
def found(root: str | None) -> tuple[Dataset, str]:
    """Return CIFAR-10 or its stand-in, and what it is in words."""
    for make, told in (_full, "CIFAR-10"), (_sample, "a sample of CIFAR-10"):
        if root is not None:
            with suppress(DataError, FileNotFoundError):
                return make(root), told
    return _enlarged(), "FashionMNIST's sample at 3x32x32 in place of CIFAR-10"


def _full(root: str) -> Dataset:
    return load("cifar10", root=root)


def _sample(root: str) -> Dataset:
    with np.load(Path(root) / SAMPLE, allow_pickle=False) as arrays:
        images = [torch.from_numpy(arrays[f"{part}_images"]) for part in ("train", "test")]
        labels = [torch.from_numpy(arrays[f"{part}_labels"]) for part in ("train", "test")]
    first, second = (x.permute(0, 3, 1, 2).contiguous() for x in images)
    return Dataset("cifar10-sample", first, labels[0].long(), second, labels[1].long(), **CIFAR)  # type: ignore[arg-type]


def _enlarged() -> Dataset:
    """Return FashionMNIST's sample with CIFAR-10's shape: what ships is always there."""
    small = fashionmnist_sample(None, False)
    return replace(
        small,
        name="stand-in",
        train_images=_as_cifar(small.train_images),
        test_images=_as_cifar(small.test_images),
        mean=3 * small.mean,
        std=3 * small.std,
    )


def _as_cifar(images: Tensor) -> Tensor:
    return F.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()


def _sized(dataset: Dataset, count: int, *, tested: int) -> Dataset:
    """Return the set with ``count`` training images, each as often as that takes."""
    places = torch.arange(count) % len(dataset.train_labels)
    return replace(
        dataset,
        name="gpu-images",
        train_images=dataset.train_images[places],
        train_labels=dataset.train_labels[places],
        test_images=dataset.test_images[:tested],
        test_labels=dataset.test_labels[:tested],
    )
