"""Checkpoints: a tree of tensors and plain values in one npz file, written whole or not at all.

Nothing is pickled: tensors are npy members, everything else is JSON, both inside one zip file whose
checksums tell a damaged file from a whole one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrobust.spec import InputError

FORMAT = 1
SKELETON = "tree"


class CheckpointError(InputError):
    """A checkpoint that cannot be written, read, or continued from."""


def save(path: Path, tree: Any) -> None:
    """Write a tree to a file that is either the old one or the new one, whatever happens.

    Parameters
    ----------
    path
        Replaced in one step once the new bytes are on disk.
    tree
        None, booleans, numbers, strings, bytes, tensors; lists and tuples (read back as lists) and
        dictionaries of them, with strings or whole numbers for keys.

    Raises
    ------
    CheckpointError
        If the tree holds anything else.
    OSError
        If the disk refuses; the old file is then untouched.
    """
    arrays: list[np.ndarray] = []
    skeleton = json.dumps({"format": FORMAT, SKELETON: _plain(tree, arrays)})
    members = {str(i): array for i, array in enumerate(arrays)}
    members[SKELETON] = np.frombuffer(skeleton.encode(), np.uint8)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **members)  # type: ignore[arg-type]
            # On disk before the renaming: after a crash the new name could stand for an empty file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load(path: Path) -> Any:
    """Read the tree back; None where there is no file.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of another format.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as members:
            document = json.loads(members[SKELETON].tobytes())
            if document["format"] != FORMAT:
                raise CheckpointError(f"format {document['format']}, expected {FORMAT}")
            return _tree(document[SKELETON], members)
    except Exception as error:  # whatever the damage breaks in the reader
        raise CheckpointError(f"the checkpoint {str(path)!r} is damaged: {error}") from error


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return JSON with every tensor replaced by its number in ``arrays``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        arrays.append(value.detach().cpu().numpy())
        return {"tensor": len(arrays) - 1}
    if isinstance(value, bytes):
        arrays.append(np.frombuffer(value, np.uint8))
        return {"bytes": len(arrays) - 1}
    if isinstance(value, list | tuple):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, dict):
        # As pairs: JSON turns the whole numbers among the keys into strings.
        return {"items": [[_key(k), _plain(v, arrays)] for k, v in value.items()]}
    raise CheckpointError(f"a checkpoint cannot hold {type(value).__name__}")


def _key(key: Any) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise CheckpointError(f"a checkpoint's keys are strings or whole numbers, got {key!r}")
    return key


def _tree(value: Any, members: Any) -> Any:
    if isinstance(value, list):
        return [_tree(item, members) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, what),) = value.items()
    if kind == "tensor":
        return torch.from_numpy(members[str(what)])
    if kind == "bytes":
        return members[str(what)].tobytes()
    return {key: _tree(item, members) for key, item in what}


def _sync_folder(folder: Path) -> None:
    """Put the renaming itself on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
