"""LEAF's data as its own scripts write them: json files by user, read from a folder.

LEAF's scripts fetch and cut the data (``./preprocess.sh`` in ``leaf/data/femnist``); nothing is
fetched here. Every user is one natural client.

References
----------
Caldas et al., LEAF: A Benchmark for Federated Settings, 2018; the format is that of its released
code, ``models/utils/model_utils.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.data.given import as_dataset
from fedrobust.data.sets import DataError, Dataset

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
CHARACTERS = 62  # of FEMNIST: digits, capitals, small letters
SIDE = 28
Read = Callable[[str, dict[str, Any]], tuple[np.ndarray, np.ndarray]]
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def femnist(root: Path | None, download: bool) -> Dataset:
    """LEAF's FEMNIST from its json files: 28x28 characters of 62 classes, a writer is a client."""
    return _loaded("femnist", root, _pictures, CHARACTERS)


def shakespeare(root: Path | None, download: bool) -> Dataset:
    """LEAF's Shakespeare from its json files: 80 characters, then which is next; a role a client.

    For the model ``char_lstm``.
    """
    return _loaded("shakespeare", root, _lines, len(LETTERS))


def _loaded(name: str, root: Path | None, read: Read, classes: int) -> Dataset:
    folders = [_folder(name, root, part) for part in ("train", "test")]
    train, test = (_joined(folder, read) for folder in folders)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{name}: training and test inputs differ in length")
    return replace(as_dataset(name, {"train": train, "test": test}), classes=classes)


def _folder(name: str, root: Path | None, part: str) -> Path:
    """Find the json files under a data root: LEAF's own tree, or the two folders alone."""
    for inner in ((name, "data", part), (name, part)) if root is not None else ():
        assert root is not None
        if any(root.joinpath(*inner).glob("*.json")):
            return root.joinpath(*inner)
    raise DataError(
        f"the data set {name!r} needs LEAF's json files in {name}/data/{part} or {name}/{part}"
        f" under the data root, {str(root)!r} has none: run LEAF's own data/{name}/preprocess.sh,"
        " and name its folder 'data' by --data-root or FEDROBUST_DATA"
    )


def _joined(folder: Path, read: Read) -> Parts:
    """Read every user of a folder's files, in the order of the files' names."""
    inputs, targets, owners = [], [], []
    for user, x, y in _users(folder, read):
        inputs.append(x)
        targets.append(y)
        owners += [user] * len(y)
    if not owners:
        raise DataError(f"{str(folder)!r} holds no examples")
    try:
        return np.concatenate(inputs), np.concatenate(targets), np.array(owners)
    except ValueError as error:
        raise DataError(f"{str(folder)!r}: inputs of users differ in length: {error}") from error


def _users(folder: Path, read: Read) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for file in sorted(folder.glob("*.json")):
        try:
            users = json.loads(file.read_bytes())["user_data"]
            for user, examples in users.items():
                if len(examples["x"]) != len(examples["y"]):
                    raise ValueError(f"user {user!r} has as many x as y")
                if examples["y"]:
                    yield user, *read(user, examples)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{str(file)!r} is not in LEAF's format, {{'user_data': {{user: {{'x': [...], 'y':"
                f" [...]}}}}}}: {type(error).__name__}: {error}"
            ) from error


def _pictures(user: str, examples: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read 784 values in [0, 1] a picture; they were whole pixels, and are again."""
    values = 255 * np.asarray(examples["x"], dtype=np.float64)
    pixels = np.rint(values)
    if values.shape[1:] != (SIDE * SIDE,) or not (np.abs(values - pixels) < 0.01).all():
        raise ValueError(f"user {user!r} needs pictures of {SIDE * SIDE} values k / 255")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"user {user!r} needs values in [0, 1]")
    labels = np.asarray(examples["y"])
    if labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < CHARACTERS)).all():
        raise ValueError(f"user {user!r} needs labels in 0..{CHARACTERS - 1}")
    return pixels.astype(np.uint8).reshape(-1, 1, SIDE, SIDE), labels.astype(np.int64)


def _lines(user: str, examples: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read lines of equal length and the letter after each."""
    inputs = np.array([_letters(user, line) for line in examples["x"]], dtype=np.int64)
    targets = np.array([_letters(user, letter) for letter in examples["y"]], dtype=np.int64)
    if targets.shape[1:] != (1,):
        raise ValueError(f"user {user!r} needs one letter after each line")
    return inputs, targets[:, 0]


def _letters(user: str, text: str) -> list[int]:
    found = [LETTERS.find(letter) for letter in text]
    if -1 in found:
        raise ValueError(f"user {user!r} writes {text[found.index(-1)]!r}, no letter of LEAF's")
    return found
