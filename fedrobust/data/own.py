"""A real client's own data: one npz file, or a folder of images with one subfolder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrobust.data.sets import CIFAR, FASHION, DataError, Dataset

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


def load_own(path: str | Path, *, name: str) -> Dataset:
    """Load a client's own training data; they stay on its machine.

    Parameters
    ----------
    path
        An npz file with ``images`` (uint8, (N, H, W) or (N, C, H, W)) and ``labels`` (whole
        numbers, (N,)); or a folder with a subfolder 0, 1, ... for each class that is there.
    name
        The experiment's data set: its images' shape, its classes, its pixels' mean and spread.

    Raises
    ------
    DataError
        If there is nothing to train on, or it does not fit the experiment.
    """
    if name not in DESCRIPTIONS:
        raise DataError(f"the data set {name!r} has no description for data of a client's own")
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
    return Dataset(name, images, labels, images[:0], labels[:0], **facts)  # type: ignore[arg-type]


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
