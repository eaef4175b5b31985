"""What rules and attacks take in: arrays of any origin, as one real (n, d) matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrobust.failures import Refusal

EXACT = (torch.float32, torch.float64)  # what is computed in; narrower types go through float32

ON_GPU = 1 << 25  # values of a block there: launching its operations takes less than they do


def block_values(device: torch.device, on_cpu: int) -> int:
    """Return how many values a block of columns holds: on a GPU more than in a CPU's cache."""
    return max(on_cpu, ON_GPU) if device.type == "cuda" else on_cpu


def matrix(given: Any, what: str = "updates") -> Tensor:
    """Return the (n, d) tensor that was given, detached; nothing is copied where it is one already.

    Parameters
    ----------
    given
        A tensor, a numpy array, or a sequence of either (or of numbers) with one entry a row.
    what
        What the rows are, for the error.

    Raises
    ------
    TypeError
        For integers, booleans, complex numbers, sparse tensors, or another shape.
    ValueError
        For rows of different lengths, types or devices.
    """
    tensor = _tensor(given, what)
    real = tensor.is_floating_point() and tensor.layout == torch.strided
    if not real or tensor.dim() != 2:
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        raise TypeError(
            f"{what} need shape (n, d) and a real floating type, got {tuple(tensor.shape)}"
            f" {str(tensor.dtype).removeprefix('torch.')}{layout}"
        )
    if tensor.shape[1] == 0:
        raise ValueError(f"{what} need at least one coordinate, got shape {tuple(tensor.shape)}")
    return tensor.detach()


def vector(given: Any, what: str) -> Tensor:
    """Return a (d,) tensor, detached; raises as ``matrix``."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim != 1:
        raise ValueError(f"{what} needs shape (d,), got {tuple(given.shape)}")
    return matrix([given] if isinstance(given, Tensor) else np.asarray([given]), what)[0]


def computable(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or float64: sums of halves overflow and lose their digits."""
    return tensor if tensor.dtype in EXACT else tensor.float()


def narrowed(result: Tensor, dtype: torch.dtype, who: str) -> Tensor:
    """Return a result in the type of what went in.

    Raises
    ------
    ValueError
        If a finite value is too large for that type.
    """
    if result.dtype == dtype:
        return result
    back = result.to(dtype)
    if bool((torch.isfinite(result) & ~torch.isfinite(back)).any()):
        largest = float(result[torch.isfinite(result)].abs().max())
        name = str(dtype).removeprefix("torch.")
        raise Refusal(f"{who}: a value of {largest:.3g} does not fit into {name}")
    return back


def _tensor(given: Any, what: str) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ndarray):
        return _from_numpy(given, what)
    if not isinstance(given, list | tuple):
        raise TypeError(f"{what} need a tensor, an array or a list of rows, got {_kind(given)}")
    if not any(isinstance(row, Tensor) for row in given):
        try:
            return _from_numpy(np.asarray(given), what)
        except ValueError as error:  # numpy's own words for rows of different lengths are unclear
            raise ValueError(f"{what} need rows of one length") from error
    rows = [row if isinstance(row, Tensor) else _from_numpy(np.asarray(row), what) for row in given]
    kinds = {(tuple(row.shape), row.dtype, row.device) for row in rows}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{shape} {dtype} {device}" for shape, dtype, device in kinds))
        raise ValueError(f"{what} need rows of one length, type and device, got {found}")
    return torch.stack(rows)


def _from_numpy(array: np.ndarray, what: str) -> Tensor:
    """Convert an array; byte order, negative strides and read-only memory need a copy."""
    # Wider than 8 bytes is a long double, which torch does not have.
    if array.dtype.kind not in "fiubc" or (array.dtype.itemsize > 8 and array.dtype.kind == "f"):
        raise TypeError(f"{what} need a real floating type, got numpy {array.dtype}")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def _kind(given: Any) -> str:
    return type(given).__name__


def permute_rows(rows: Tensor, order: Sequence[int]) -> None:
    """Put row ``order[i]`` in the place of row i, in the matrix's own memory and that of one row.

    Parameters
    ----------
    rows
        (n, d), written.
    order
        A permutation of 0..m-1, m <= n; the rows behind stay.
    """
    done = [i == source for i, source in enumerate(order)]
    for start in range(len(order)):
        if done[start]:
            continue
        first, at = rows[start].clone(), start
        while order[at] != start:
            rows[at].copy_(rows[order[at]])
            done[at], at = True, order[at]
        rows[at].copy_(first)
        done[at] = True


def apart_from(rows: Tensor, table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return named tensors that stand elsewhere than some rows: those in the rows are copied."""
    return {name: tensor.clone() if shared(rows, tensor) else tensor
            for name, tensor in table.items()}  # fmt: skip


def shared(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are in one piece of memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
