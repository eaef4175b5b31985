"""Data that need no download beside images: tables of scikit-learn, and a small text by author."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from fedrobust.data.given import as_dataset
from fedrobust.data.sets import Dataset

ALPHABET = " \nabcdefghijklmnopqrstuvwxyz0123456789.,:;'\"`()[]{}<>=+-*/_#%@!?|\\"
WINDOW = 32  # characters of one example
EVERY = 5  # of the windows of each module, every fifth is for the test


def breast_cancer(root: Path | None, download: bool) -> Dataset:
    """Breast cancer in Wisconsin, of scikit-learn: 569 rows of 30 columns, two classes.

    References
    ----------
    Street, Wolberg, Mangasarian, Nuclear feature extraction, 1993.
    """
    from sklearn.datasets import load_breast_cancer

    return as_dataset("breast_cancer", load_breast_cancer(return_X_y=True))


def wine(root: Path | None, download: bool) -> Dataset:
    """The wines of scikit-learn: 178 rows of 13 columns, three classes."""
    from sklearn.datasets import load_wine

    return as_dataset("wine", load_wine(return_X_y=True))


def diabetes(root: Path | None, download: bool) -> Dataset:
    """The diabetes patients of scikit-learn: 442 rows of 10 columns, a regression.

    The target is standardised: 1 is one standard deviation of all patients.

    References
    ----------
    Efron, Hastie, Johnstone, Tibshirani, Least Angle Regression, 2004.
    """
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    # Mean and spread of all targets, written out: no processor computes others.
    return as_dataset("diabetes", (x, (y - 152.1) / 77.0))


def docstrings(root: Path | None, download: bool) -> Dataset:
    """Docstrings of 40 modules of Python's library, character by character; a module is a client.

    4,000 characters a module, in windows of 32; the target of each character is the next one. It
    ships with the package, under the licence of Python.
    """
    source = resources.files("fedrobust.data").joinpath("docstrings_sample.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        text = torch.from_numpy(arrays["text"]).long()
    # Less one: the last character has no next one.
    count = (text.shape[1] - 1) // WINDOW
    inputs = text[:, : count * WINDOW].reshape(len(text), count, WINDOW)
    targets = text[:, 1 : count * WINDOW + 1].reshape(len(text), count, WINDOW)
    owners = torch.arange(len(text))[:, None].expand(len(text), count)
    test = torch.arange(count) % EVERY == EVERY - 1
    train = ~test
    return Dataset(
        "docstrings",
        inputs[:, train].flatten(0, 1), targets[:, train].flatten(0, 1),
        inputs[:, test].flatten(0, 1), targets[:, test].flatten(0, 1),
        len(ALPHABET), (), (), owners[:, train].flatten(), owners[:, test].flatten(),
    )  # fmt: skip
