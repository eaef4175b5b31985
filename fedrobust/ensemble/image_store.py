"""The attacker's images on disk: plain arrays, a manifest with hashes, a picture to look at."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedrobust.data import Dataset
from fedrobust.ensemble.attacker import Crafted, key_of, make
from fedrobust.experiment.schema import Experiment

MANIFEST = "manifest.json"
SHOWN, ENLARGED, AMPLIFIED = 12, 3, 8


class ArchiveError(ValueError):
    """A folder of images whose files are not those of its manifest."""


def obtain(
    experiment: Experiment,
    dataset: Dataset,
    parent: Path | None,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Crafted:
    """Return the attacker's images: from their folder in ``parent``, or made and put there.

    Parameters
    ----------
    parent
        Where image folders are; each is named by what decides its images. None: nothing is kept.
        Processes that want the same images wait for the one that makes them.
    device
        Where they are made; the result is on the CPU.
    """
    if parent is None:
        return make(experiment, dataset, device=device, say=say)
    folder = folder_of(experiment, parent)
    with _alone(folder):
        if not (folder / MANIFEST).is_file():
            save(make(experiment, dataset, device=device, say=say), folder)
        return load(folder)


def folder_of(experiment: Experiment, parent: Path) -> Path:
    """Return where an experiment's attacker keeps its images."""
    return parent / f"images-{experiment.data}-{key_of(experiment)}"


def save(crafted: Crafted, folder: Path) -> None:
    """Write one .npy an attack, the clean images, the labels, a picture; the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "clean": crafted.clean,
        "labels": crafted.labels,
        "gradient": crafted.gradient,
        **{f"attack-{name}": images for name, images in crafted.images.items()},
    }
    files = {}
    for name, tensor in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, tensor.numpy(), allow_pickle=False)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    picture(crafted, folder / "sheet.png")
    text = json.dumps({**crafted.facts, "sha256": files}, indent=2)
    # Last: a folder without it was cut off, and is made again.
    (folder / MANIFEST).write_text(text)


def load(folder: Path) -> Crafted:
    """Read the images back, checking every file against the manifest.

    Raises
    ------
    ArchiveError
        If a file is missing or is not the one that the manifest names.
    """
    facts = json.loads((folder / MANIFEST).read_text())
    arrays = {}
    for name, digest in facts.pop("sha256").items():
        # The name alone: a manifest that was tampered with must not lead out of the folder.
        path = folder / Path(name).name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ArchiveError(f"{str(path)!r} is not the file of its manifest: remove the folder")
        arrays[path.stem] = torch.from_numpy(np.load(path, allow_pickle=False))
    images = {
        attack: arrays[f"attack-{attack}"]
        for attack in facts["settings"]["attacks"]
        if f"attack-{attack}" in arrays
    }
    return Crafted(arrays["clean"], arrays["labels"], images, arrays["gradient"], facts)


def picture(crafted: Crafted, path: Path) -> None:
    """Draw the first images: clean, then per attack the image and its amplified perturbation."""
    from PIL import Image

    first = crafted.clean[:SHOWN]
    rows = [first]
    for images in crafted.images.values():
        # uint8 would wrap around where the image became darker.
        moved = images[:SHOWN].int() - first.int()
        rows += [images[:SHOWN], (128 + AMPLIFIED * moved).clamp(0, 255).to(torch.uint8)]
    sheet = torch.cat([_line(row) for row in rows], 1)
    sheet = sheet.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    flat = sheet[0] if sheet.shape[0] == 1 else sheet.permute(1, 2, 0)
    Image.fromarray(flat.contiguous().numpy()).save(path)


def _line(images: Tensor) -> Tensor:
    """Put images side by side with a white border, (C, H + 1, B * (W + 1))."""
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=255)
    return torch.cat(list(framed), 2)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, which does not exist before its images do.
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
