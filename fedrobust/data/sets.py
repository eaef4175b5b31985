"""The data sets: a shipped sample, and the full sets through torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrobust.spec import InputError, suggest

ROOT_VARIABLE = "FEDROBUST_DATA"


class DataError(InputError):
    """A data set that is unknown, absent, or too small for what is asked of it."""


@dataclass(frozen=True)
class Dataset:
    """One data set, whole, on one device; its inputs are called images, whatever they are.

    Attributes
    ----------
    train_images, test_images
        Images are uint8, (N, C, H, W). Other inputs are float32 or int64, (N, ...).
    train_labels, test_labels
        Classes are int64, (N,), in 0..classes-1; sequences of them int64, (N, T), where -1 counts
        for nothing. Other targets are float32, (N, ...).
    classes
        How many outputs a model needs: classes, or values of one target.
    mean, std
        Per channel, of pixels in [0, 1], or per column of a table: our models normalise with them.
    train_clients, test_clients
        Whose each example is, int64, (N,), where the data came with their clients.
    validation
        Images and labels that no client holds, taken from the training set; None: there are none.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_clients: Tensor | None = None
    test_clients: Tensor | None = None
    validation: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device | str) -> Dataset:
        """Return the set with all its tensors on a device."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        if self.validation is not None:
            images, labels = self.validation
            tensors["validation"] = (images.to(device), labels.to(device))
        return replace(self, **tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input; of an image (channels, height, width)."""
        return tuple(self.train_images.shape[1:])

    @property
    def holds_images(self) -> bool:
        """Whether the inputs are images: pixels in 0..255."""
        return self.train_images.dtype == torch.uint8 and self.train_images.dim() == 4

    @property
    def holds_classes(self) -> bool:
        """Whether each target is one class."""
        return not self.train_labels.is_floating_point() and self.train_labels.dim() == 1


FASHION = {"classes": 10, "mean": (0.2860,), "std": (0.3530,)}
CIFAR = {"classes": 10, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def fashionmnist_sample(root: Path | None, download: bool) -> Dataset:
    """Balanced sample of FashionMNIST that ships with the package: 8,000 train, 1,500 test."""
    source = resources.files("fedrobust.data").joinpath("fashionmnist_sample.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return Dataset(
        "fashionmnist-sample",
        tensors["train_images"].unsqueeze(1),
        tensors["train_labels"].long(),
        tensors["test_images"].unsqueeze(1),
        tensors["test_labels"].long(),
        **FASHION,  # type: ignore[arg-type]
    )


def digits(root: Path | None, download: bool) -> Dataset:
    """The 8x8 digits of scikit-learn (1,438 train, 359 test), for toys and tests."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Its pixels are 0..16.
    images = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return Dataset(
        "digits", images[~test], labels[~test], images[test], labels[test], 10, (0.3053,), (0.3762,)
    )


def fashionmnist(root: Path | None, download: bool) -> Dataset:
    """FashionMNIST (Xiao et al. 2017): 60,000 train, 10,000 test, 1x28x28."""
    from torchvision.datasets import FashionMNIST

    train, test = _torchvision(FashionMNIST, "fashionmnist", root, download)
    return Dataset(
        "fashionmnist",
        train.data.unsqueeze(1),
        train.targets.long(),
        test.data.unsqueeze(1),
        test.targets.long(),
        **FASHION,  # type: ignore[arg-type]
    )


def cifar10(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train, 10,000 test, 3x32x32."""
    from torchvision.datasets import CIFAR10

    train, test = _torchvision(CIFAR10, "cifar10", root, download)
    images = [
        torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)
    ]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    return Dataset(
        "cifar10",
        images[0],
        labels[0],
        images[1],
        labels[1],
        **CIFAR,  # type: ignore[arg-type]
    )


def mnist(root: Path | None, download: bool) -> Dataset:
    """MNIST (LeCun 1998): 60,000 train, 10,000 test, 1x28x28."""
    from torchvision.datasets import MNIST

    return _grey("mnist", MNIST, root, download)


def emnist(root: Path | None, download: bool) -> Dataset:
    """EMNIST, its balanced split (Cohen et al. 2017): 112,800 train, 18,800 test, 47 classes."""
    from torchvision.datasets import EMNIST

    return _grey("emnist", partial(EMNIST, split="balanced"), root, download)


def cifar100(root: Path | None, download: bool) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): 50,000 train, 10,000 test, 3x32x32, 100 classes."""
    from torchvision.datasets import CIFAR100

    train, test = _torchvision(CIFAR100, "cifar100", root, download)
    parts = [(part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for part in (train, test)]
    return _of("cifar100", parts)


def svhn(root: Path | None, download: bool) -> Dataset:
    """SVHN (Netzer et al. 2011): 73,257 train, 26,032 test, 3x32x32, digits of house numbers."""
    from torchvision.datasets import SVHN

    def split(folder: str, *, train: bool, download: bool) -> Any:
        return SVHN(folder, split="train" if train else "test", download=download)

    parts = _torchvision(split, "svhn", root, download)
    return _of("svhn", [(part.data, part.labels) for part in parts])


def _grey(name: str, kind: Callable, root: Path | None, download: bool) -> Dataset:
    parts = _torchvision(kind, name, root, download)
    return _of(name, [(part.data.unsqueeze(1).numpy(), part.targets.numpy()) for part in parts])


def _of(name: str, parts: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """Build a set of images; mean and spread are those of its training pixels, to four digits."""
    (x, y), (u, v) = parts
    pixels = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    mean = tuple(round(float(row.mean()) / 255, 4) for row in pixels)
    std = tuple(round(float(row.std()) / 255, 4) for row in pixels)
    x, u = np.ascontiguousarray(x), np.ascontiguousarray(u)
    a, b, c, d = (torch.from_numpy(part) for part in (x, y.astype(np.int64), u, v.astype(np.int64)))
    return Dataset(name, a, b, c, d, int(y.max()) + 1, mean, std)


DATASETS: dict[str, Callable[[Path | None, bool], Dataset]] = {
    "fashionmnist-sample": fashionmnist_sample,
    "fashionmnist": fashionmnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "emnist": emnist,
    "svhn": svhn,
    "digits": digits,
}
TENTH = 10  # one training example in so many is for validation
VALIDATION = "-validation"


def validation(source: Callable[[Path | None, bool], Dataset]) -> Callable[..., Dataset]:
    """Return the set whose test examples are every tenth training example: to tune on."""

    def load(root: Path | None, download: bool) -> Dataset:
        whole = source(root, download)
        held = torch.arange(len(whole.train_labels)) % TENTH == TENTH - 1
        owners = whole.train_clients
        return replace(
            whole,
            name=whole.name + VALIDATION,
            train_images=whole.train_images[~held],
            train_labels=whole.train_labels[~held],
            test_images=whole.train_images[held],
            test_labels=whole.train_labels[held],
            train_clients=None if owners is None else owners[~held],
            test_clients=None if owners is None else owners[held],
        )

    first = (source.__doc__ or "").splitlines()[0].split(" (")[0].split(":")[0].rstrip(".")
    load.__doc__ = f"Nine tenths of the training examples, tested on the rest, of: {first}."
    return load


# Over a copy of the table, which grows meanwhile.
DATASETS |= {name + VALIDATION: validation(source) for name, source in [*DATASETS.items()]}


def load(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name
        A key of ``DATASETS``.
    root
        Folder with torchvision's layout; ``FEDROBUST_DATA`` where None.
    download
        Whether a set that is not there may be fetched.

    Raises
    ------
    DataError
        If the name is unknown, or the set is not there and may not be fetched.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; {suggest(name, list(DATASETS))}")
    root = root or os.environ.get(ROOT_VARIABLE) or None
    return DATASETS[name](Path(root) if root else None, download)


def _torchvision(kind: Callable, name: str, root: Path | None, download: bool) -> tuple:
    """Load both splits, or say in one sentence what to do."""
    options = (
        f"pass --data-root FOLDER or set {ROOT_VARIABLE} to a folder in torchvision's layout, "
        "pass --download to fetch it, or use data = 'fashionmnist-sample', which is shipped"
    )
    if root is None:
        raise DataError(f"the data set {name!r} needs a data root; {options}")
    if not root.is_dir() and not download:
        raise DataError(f"the data root {str(root)!r} is not a folder; {options}")
    try:
        return tuple(kind(str(root), train=train, download=download) for train in (True, False))
    except RuntimeError as error:
        raise DataError(f"no complete {name!r} in {str(root)!r}; {options}") from error
