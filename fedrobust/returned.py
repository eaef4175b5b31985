"""What the code of a plug-in returned, checked before anything is computed with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedrobust.failures import PluginError


def check_returned(kind: str, name: str, found: Any, shape: Sequence[int], dtype: Any) -> Tensor:
    """Return what a plug-in returned, if it is a tensor of this shape and type.

    Raises
    ------
    PluginError
        ``rule 'mine' returned ndarray (650,) float64, expected tensor (650,) float32``.
    """
    if isinstance(found, Tensor) and found.shape == torch.Size(shape) and found.dtype == dtype:
        return found
    wanted = f"tensor {tuple(shape)} {_plain(dtype)}"
    raise PluginError(f"{kind} {name!r} returned {described(found)}, expected {wanted}")


def described(value: Any) -> str:
    """Describe a value by its type, and its shape and number type where it is an array."""
    kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
    # Of the type: an object whose __getattr__ answers to any name is no array.
    attributes = vars(type(value))
    if isinstance(value, Tensor) or {"shape", "dtype"} <= set(attributes):
        return f"{kind} {tuple(value.shape)} {_plain(value.dtype)}"
    if isinstance(value, list | tuple):
        return f"{kind} of {len(value)}"
    return kind


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
