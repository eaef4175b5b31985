"""Data that a user hands over, in any of the usual forms, as a ``Dataset``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrobust.data.sets import DataError, Dataset
from fedrobust.seeds import generator

TARGETS = ("target", "label", "labels", "y")
CLIENTS = ("client", "client_id")
HELD_OUT = 0.2  # of the examples, for the test, where only one set is given
FORMS = ("(X, y), (train, test), {'train': ..., 'test': ...}, a map-style dataset of (input,"
         " target), a pandas frame or a Hugging Face dataset")  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Inputs (N, ...), targets (N, ...), and the name of whose each one is (N,), None: unknown."""

    inputs: Tensor
    targets: Tensor
    clients: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, places: Tensor) -> Examples:
        """Return the examples at some places."""
        clients = None if self.clients is None else self.clients[places.numpy()]
        return Examples(self.inputs[places], self.targets[places], clients)


def as_dataset(name: str, given: Any) -> Dataset:
    """Turn what a user gives into a data set.

    Parameters
    ----------
    name
        What the data are called.
    given
        A ``Dataset``; training and test data, as a pair or a table with the keys ``train`` and
        ``test``; or one set, of which a fifth, drawn once and for all, becomes the test. Each is
        ``(X, y)`` or ``(X, y, clients)``, arrays or tensors; a map-style dataset of ``(input,
        target)`` or ``(input, target, client)``; a pandas frame or a Hugging Face dataset with a
        column ``target`` or ``label``, perhaps one ``client``, and numbers in all others.

    Returns
    -------
    Dataset
        Inputs: uint8 of shape (N, H, W) or (N, C, H, W) are images; other whole numbers int64, all
        else float32. Targets: whole numbers (N,) are classes, (N, T) are sequences of them; all
        else is float32, with as many outputs as a target has values.

    Raises
    ------
    DataError
        For another form, parts of unequal length, what is no number, or is not finite.
    """
    if isinstance(given, Dataset):
        return replace(given, name=name)
    train, test = _parts(name, given)
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        shapes = f"{tuple(train.inputs.shape[1:])} and {tuple(test.inputs.shape[1:])}"
        raise DataError(f"data {name!r}: training and test inputs differ in shape, {shapes}")
    if train.targets.dtype != test.targets.dtype:
        kinds = f"{train.targets.dtype} and {test.targets.dtype}"
        raise DataError(f"data {name!r}: training and test targets differ in type, {kinds}")
    mean, std = _spread(train.inputs)
    known, tested = _numbered(train.clients, test.clients)
    return Dataset(
        name, train.inputs, train.targets, test.inputs, test.targets,
        _outputs(name, train.targets, test.targets), mean, std, known, tested,
    )  # fmt: skip


def examples(name: str, given: Any) -> Examples:
    """Read one set as it is, in any form that ``as_dataset`` takes for one; nothing is held out.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    return _examples(name, given)


def digest_of(dataset: Dataset) -> str:
    """Return 12 hexadecimal digits of everything that is in a data set but its name."""
    found = hashlib.sha256()
    for key, value in vars(dataset).items():
        # Validation is a pair of tensors; mean and std are plain numbers, and so is classes.
        for part in value if key == "validation" and value is not None else [value]:
            if isinstance(part, Tensor):
                found.update(f"{key} {part.dtype} {tuple(part.shape)}".encode())
                found.update(part.cpu().contiguous().numpy().tobytes())
            elif key != "name":
                found.update(f"{key} {part!r}".encode())
    return found.hexdigest()[:12]


def _parts(name: str, given: Any) -> tuple[Examples, Examples]:
    if isinstance(given, Mapping) and not _is_frame(given):
        if "train" not in given:
            raise DataError(
                f"data {name!r} needs the key 'train', got {', '.join(map(str, given))}"
            )
        if "test" in given:
            return _examples(name, given["train"]), _examples(name, given["test"])
        given = given["train"]
    elif _is_pair_of_sets(given):
        return _examples(name, given[0]), _examples(name, given[1])
    whole = _examples(name, given)
    # Seed 0, not the experiment's: runs with other seeds are measured on the same test set.
    order = torch.randperm(len(whole), generator=generator(0, "held out"))
    held = round(HELD_OUT * len(whole))
    if not 0 < held < len(whole):
        raise DataError(f"data {name!r} has {len(whole)} examples: too few to hold a fifth out")
    return whole.at(order[held:].sort().values), whole.at(order[:held].sort().values)


def _is_pair_of_sets(given: Any) -> bool:
    """Whether two things are training and test data, rather than inputs and their targets."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    return all(isinstance(one, tuple | list) or not _is_array(one) for one in given)


def _is_array(value: Any) -> bool:
    """Whether a value is one array: a tensor, an ndarray, a pandas series."""
    return not _is_frame(value) and (isinstance(value, Tensor) or hasattr(value, "__array__"))


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "iloc")


def _examples(name: str, given: Any) -> Examples:
    """Read one set."""
    if isinstance(given, tuple | list) and len(given) in (2, 3) and _arrays(given):
        columns = list(given)
    elif _is_frame(given):
        columns = _columns(name, {str(key): given[key].to_numpy() for key in given.columns})
    elif hasattr(given, "column_names") and hasattr(given, "with_format"):
        table = given.with_format("numpy")[:]
        columns = _columns(name, {key: np.asarray(table[key]) for key in given.column_names})
    elif hasattr(given, "tensors"):
        columns = list(given.tensors)
    elif hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        columns = _stacked(name, given)
    else:
        raise DataError(f"data {name!r}: a {type(given).__name__} is none of {FORMS}")
    if len(columns) not in (2, 3):
        raise DataError(
            f"data {name!r}: an example is (input, target) or (input, target, client), one tensor"
            f" each, got {len(columns)} parts"
        )
    return _checked(name, *columns)


def _arrays(parts: Sequence[Any]) -> bool:
    """Whether these are inputs and targets, and perhaps the names of their clients."""
    x, y = parts[:2]
    listed = isinstance(x, list) and isinstance(y, list)
    return listed or (_is_array(y) and (_is_array(x) or _is_frame(x) or hasattr(x, "toarray")))


def _columns(name: str, table: dict[str, Any]) -> list[Any]:
    """Tell the target and the client of a table from its inputs."""
    targets = [key for key in table if key in TARGETS]
    if len(targets) != 1:
        raise DataError(
            f"data {name!r} needs one column named target, label, labels or y, got the columns"
            f" {', '.join(list(table)[:8])}{', ...' if len(table) > 8 else ''}"
        )
    owners = [key for key in table if key in CLIENTS]
    inputs = [key for key in table if key not in targets[:1] + owners[:1]]
    if not inputs:
        raise DataError(f"data {name!r} has no column beside {targets[0]!r} to learn from")
    wrong = [k for k in inputs if table[k].dtype.kind not in "biuf"]
    if wrong:
        raise DataError(
            f"data {name!r}: column {wrong[0]!r} holds no numbers of one shape: encode it, or leave"
            " it out"
        )
    several = len(inputs) > 1 or table[inputs[0]].ndim == 1
    x = np.stack([table[key] for key in inputs], 1) if several else table[inputs[0]]
    return [x, table[targets[0]], *(table[key] for key in owners[:1])]


def _stacked(name: str, given: Any) -> list[Any]:
    """Read a map-style dataset example by example."""
    rows = [given[i] for i in range(len(given))]
    if not rows or not all(isinstance(row, tuple | list) for row in rows):
        kind = type(rows[0]).__name__ if rows else "nothing"
        raise DataError(f"data {name!r}: an example is (input, target), got {kind}")
    try:
        return [np.stack([np.asarray(one) for one in part]) for part in zip(*rows, strict=True)]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"data {name!r}: the examples differ in shape ({error}): pad or resize them"
        ) from error


def _checked(name: str, inputs: Any, targets: Any, clients: Any = None) -> Examples:
    x, y = _tensor(name, "inputs", inputs), _tensor(name, "targets", targets)
    x = x.unsqueeze(1) if x.dtype == torch.uint8 and x.dim() == 3 else x
    x = x.long() if x.dtype == torch.uint8 and x.dim() != 4 else x
    y = y.long() if y.dtype == torch.uint8 else y
    owners = None if clients is None else _names(clients)
    for what, part in (("targets", y), ("clients", owners)):
        if part is not None and len(part) != len(x):
            raise DataError(f"data {name!r} has {len(x)} inputs and {len(part)} {what}")
    if not len(x):
        raise DataError(f"data {name!r} holds no examples")
    return Examples(x.unsqueeze(1) if x.dim() == 1 else x, y, owners)


def _tensor(name: str, what: str, values: Any) -> Tensor:
    """Return values as uint8, int64 or float32."""
    if hasattr(values, "toarray"):
        raise DataError(f"data {name!r}: the {what} are a sparse matrix: call .toarray() first")
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise DataError(f"data {name!r}: the {what} hold no numbers of one shape: encode them")
        wide = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch has few unsigned types
        # torch.tensor copies: what the user does to the array later must not change a run.
        tensor = torch.tensor(array.astype(np.int64) if wide else array)
    if tensor.dtype in (torch.uint8, torch.int64):
        return tensor
    if not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool:
        return tensor.long()
    if tensor.is_complex():
        raise DataError(f"data {name!r}: the {what} are complex numbers")
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"data {name!r}: the {what} hold values that are missing or not finite")
    return tensor


def _names(clients: Any) -> np.ndarray:
    """Return whose each example is, as it was given, (N,)."""
    return np.asarray(clients.numpy() if isinstance(clients, Tensor) else clients).reshape(-1)


def _numbered(*parts: np.ndarray | None) -> list[Tensor | None]:
    """Number clients, whatever they are called, in the order of their names: all parts alike."""
    known = [part for part in parts if part is not None]
    if not known:
        return [None for _ in parts]
    names = np.unique(np.concatenate(known))
    return [
        None if part is None else torch.from_numpy(np.searchsorted(names, part.astype(names.dtype)))
        for part in parts
    ]


def _outputs(name: str, *targets: Tensor) -> int:
    """Return how many outputs a model needs: classes, or values of one target."""
    if targets[0].is_floating_point():
        return int(targets[0][0].numel())
    lowest = min(int(part.min()) for part in targets)
    if lowest < -1 or (lowest < 0 and targets[0].dim() == 1):
        raise DataError(
            f"data {name!r}: whole targets are classes 0, 1, ..., got {lowest}: turn them into"
            " floats for a regression"
        )
    # Two at least: a single output has nothing to tell apart.
    return max(2, 1 + max(int(part.max()) for part in targets))


def _spread(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and spread of each channel of images, or of each column; else nothing.

    Rounded, so that two processors agree on them.
    """
    if inputs.dtype == torch.uint8:
        values = inputs.transpose(0, 1).flatten(1).double() / 255
    elif inputs.is_floating_point() and inputs.dim() == 2:
        values = inputs.T.double()
    else:
        return (), ()
    mean, std = values.mean(1), values.std(1)
    # A constant column is divided by 1, not by 0.
    return _rounded(mean), _rounded(torch.where(std > 0, std, torch.ones_like(std)))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())
