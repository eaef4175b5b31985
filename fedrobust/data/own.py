"""A real client's own data: arrays, a table, a folder of images, or what a plug-in reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedrobust.data.given import Examples, examples
from fedrobust.data.sets import CIFAR, DATASETS, FASHION, DataError, Dataset, load

DESCRIPTIONS = {
    "fashionmnist-sample": ((1, 28, 28), FASHION),
    "fashionmnist": ((1, 28, 28), FASHION),
    "cifar10": ((3, 32, 32), CIFAR),
    "digits": ((1, 8, 8), {"classes": 10, "mean": (0.3053,), "std": (0.3762,)}),
}
EIGHT_BITS = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
SAVED = ("state.json", "dataset_dict.json")  # in a folder that a Hugging Face dataset wrote


def load_own(path: str | Path, *, name: str, root: str | Path | None = None) -> Dataset:
    """Load a client's own training data; they stay on its machine.

    Parameters
    ----------
    path
        Of images: an npz file with ``images`` (uint8, (N, H, W) or (N, C, H, W)) and ``labels``
        (whole numbers, (N,)); or a folder with a subfolder 0, 1, ... for each class that is there.
        Of other data: a csv or parquet file with a column ``target`` or ``label``, an npz file with
        ``inputs`` and ``targets``, a folder that a Hugging Face dataset was saved to, a folder of
        images by class where the public set is of images; or whatever the data set's plug-in reads,
        which is then asked with ``path=``.
    name
        The experiment's data set. It says what fits: the shape and type of an input, the classes,
        mean and spread.
    root
        Where the public data sets are.

    Raises
    ------
    DataError
        If there is nothing to train on, or it does not fit the experiment.
    """
    if name not in DESCRIPTIONS:
        public = load(name, root=root)
        return _described(path, name, _read(Path(path), name, public), public)
    shape, facts = DESCRIPTIONS[name]
    source = Path(path)
    images, labels = _folder(source, shape) if source.is_dir() else _npz(source)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape or len(images) == 0:
        found = f"{tuple(images.shape)} {images.dtype}"
        raise DataError(f"{str(path)!r} holds images {found}, {name} has uint8 (N, {shape})")
    classes = int(facts["classes"])  # type: ignore[call-overload]
    if labels.shape != (len(images),) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"{str(path)!r} needs one label in 0..{classes - 1} an image")
    # No test data: the server has its own, and the client's stay where they are.
    return Dataset(name, images, labels, images[:0], labels[:0], **facts)  # type: ignore[arg-type]


def _read(path: Path, name: str, public: Dataset) -> Examples:
    """Read a file by its plug-in, or by what it is."""
    reads = getattr(DATASETS.get(name), "reads", None)
    try:
        if reads is not None:
            return examples(name, reads(path))
        if path.is_dir():
            return _of_folder(path, name, public)
        if path.suffix == ".csv":
            return examples(name, pd.read_csv(path))
        if path.suffix == ".parquet":
            return examples(name, pd.read_parquet(path))
        if path.suffix == ".npz":
            # A pickle inside an npz would run code as it is read.
            with np.load(path, allow_pickle=False) as arrays:
                return examples(name, (arrays["inputs"], arrays["targets"]))
    except (OSError, KeyError, ValueError, ImportError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {str(path)!r}: {type(error).__name__}: {error}") from error
    raise DataError(
        f"{str(path)!r} is no csv, parquet or npz file, no folder, and no plug-in of {name!r} reads"
        " it: its function takes no path"
    )


def _of_folder(path: Path, name: str, public: Dataset) -> Examples:
    """Read images by class, or what ``save_to_disk`` wrote: of several parts the training."""
    if public.holds_images and not any((path / file).is_file() for file in SAVED):
        return Examples(*_folder(path, public.shape))  # type: ignore[arg-type]
    import datasets

    found = datasets.load_from_disk(str(path))
    return examples(name, found["train"] if isinstance(found, datasets.DatasetDict) else found)


def _described(path: str | Path, name: str, own: Examples, public: Dataset) -> Dataset:
    """Fit a client's own examples to the data set that the experiment names."""
    x, y, like, wanted = own.inputs, own.targets, public.train_images, public.train_labels
    for what, found, needed in (("inputs", x, like), ("targets", y, wanted)):
        if found.dtype != needed.dtype or found.shape[1:] != needed.shape[1:]:
            raise DataError(
                f"{str(path)!r} holds {what} of {_form(found)}, {name} has {_form(needed)}"
            )
    if not y.is_floating_point() and int(y.max()) >= public.classes:
        raise DataError(f"{str(path)!r} holds the class {int(y.max())}, {name} has 0.."
                        f"{public.classes - 1}")  # fmt: skip
    return replace(
        public, train_images=x, train_labels=y, train_clients=None, test_images=x[:0],
        test_labels=y[:0], test_clients=None,
    )  # fmt: skip


def _form(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape[1:])}"


def _npz(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"cannot read images and labels from {str(path)!r}: {error}") from error
    return _as_images(path, images), _as_labels(path, labels)


def _as_images(path: Path, images: np.ndarray) -> Tensor:
    if images.dtype != np.uint8:
        raise DataError(f"{str(path)!r} holds images of {images.dtype}, needs uint8")
    return torch.from_numpy(images)


def _as_labels(path: Path, labels: np.ndarray) -> Tensor:
    """Return labels as int64; what is no whole number would be cut to another class."""
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{str(path)!r} holds labels of {labels.dtype}, needs whole numbers")
    whole = np.isfinite(labels) & (labels == np.floor(labels))
    if not whole.all():
        wrong = labels[~whole].flat[0]
        raise DataError(f"{str(path)!r} holds the label {wrong}, needs whole numbers")
    return torch.from_numpy(labels.astype(np.int64))


def _folder(path: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    from PIL import Image

    # In the order of names: a folder lists its files as it likes, and batches depend on it.
    found = sorted(file for file in path.glob("*/*") if file.suffix.lower() in PICTURES)
    if wrong := {file.parent.name for file in found if not file.parent.name.isdigit()}:
        raise DataError(f"class folders are numbers, {str(path)!r} has {sorted(wrong)[0]!r}")
    if not found:
        raise DataError(f"no images in {str(path)!r}: expected CLASS/IMAGE.png")
    channels, height, width = shape
    pictures = []
    for file in found:
        with Image.open(file) as picture:
            if picture.size != (width, height):
                raise DataError(f"{str(file)!r} is {picture.size}, expected {(width, height)}")
            pictures.append(_eight_bits(file, picture, "L" if channels == 1 else "RGB"))
    stacked = torch.from_numpy(np.stack(pictures))
    images = stacked.unsqueeze(1) if channels == 1 else stacked.permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([int(file.parent.name) for file in found])


def _eight_bits(file: Path, picture: Any, mode: str) -> np.ndarray:
    """Return a picture's pixels in 0..255; Pillow itself cuts 16 bits off at 255.

    Raises
    ------
    DataError
        For a mode whose range is not known ("I", "F").
    """
    from PIL import Image

    if picture.mode.startswith("I;16"):
        scaled = np.asarray(picture).astype(np.float64) * (255 / 65535)
        picture = Image.fromarray(np.round(scaled).astype(np.uint8))
    if picture.mode not in EIGHT_BITS:
        raise DataError(
            f"{str(file)!r} has pixels of mode {picture.mode!r}, whose range is not known: save it "
            "with 8 or 16 bits a channel"
        )
    return np.asarray(picture.convert(mode))
