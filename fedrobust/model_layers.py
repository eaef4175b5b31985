"""Where the tensors of a model are in the vector of its parameters, for plug-ins that ask.

A rule or an attack asks by a keyword-only parameter: ``layers``, or ``model`` for the parameters
themselves. Whoever runs it hands in what it knows of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrobust.matrix import vector

Layers = tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of each tensor, in order


def layers_of(shapes: Mapping[str, Sequence[int]]) -> Layers:
    """Return the layers of a table name -> shape, in its order."""
    return tuple((name, tuple(shape)) for name, shape in shapes.items())


def columns(layers: Layers) -> list[slice]:
    """Return where each layer is in the vector."""
    ends = torch.tensor([math.prod(shape) for _, shape in layers]).cumsum(0).tolist()
    return [slice(low, high) for low, high in zip([0, *ends], ends, strict=False)]


def checked_layers(given: Any, d: int, who: str) -> Layers:
    """Return layers as a tuple of (name, shape), once they are known to fill a vector of length d.

    Parameters
    ----------
    given
        A sequence of (name, shape) pairs, in the order of the vector, or a table name -> shape. A
        setting of a TOML file may hold it as lists.
    who
        Whose setting it is, for the error.

    Raises
    ------
    ValueError
        ``lasa needs layers with 40 values in all, got 39: weight (3, 13)``.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        layers = tuple((str(name), tuple(int(extent) for extent in shape)) for name, shape in pairs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who} needs layers as (name, shape) pairs, got {given!r:.80}") from error
    total = sum(math.prod(shape) for _, shape in layers)
    if total != d or any(extent < 0 for _, shape in layers for extent in shape):
        told = ", ".join(f"{name} {shape}" for name, shape in layers)[:80]
        raise ValueError(f"{who} needs layers with {d} values in all, got {total}: {told}")
    return layers


def checked_model(given: Any, d: int, who: str) -> Tensor:
    """Return the parameters that updates are measured from, (d,).

    Raises
    ------
    ValueError
        For another length, or values that are not finite.
    """
    found = vector(given, f"{who}: model")
    if len(found) != d or not bool(torch.isfinite(found).all()):
        raise ValueError(f"{who} needs a finite model of shape ({d},), got {tuple(found.shape)}")
    return found
