"""Quantised updates on the wire: one array of real bytes, and what a message weighs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedrobust.experiment.schema import Experiment
from fedrobust.flower.serialization import NPY, TensorArray, tensor_of
from fedrobust.seeds import generator
from fedrobust.training.update_codec import Codec

PACKET = "fedrobust.packet"


@dataclass(frozen=True)
class Wire:
    """How updates travel in one experiment: what writes an array and what reads it back.

    Attributes
    ----------
    write
        ``(update (d,), round, client) -> Array``; client -1 is the server.
    read
        ``Array -> update (d,)``; raises ValueError for anything else.
    codec
        None where updates travel as float32.
    """

    write: Callable[..., Array]
    read: Callable[[Array], Tensor]
    codec: Codec | None


def wire_of(experiment: Experiment, sizes: tuple[int, ...]) -> Wire:
    """Return how an experiment's updates travel; ``sizes`` are those of its parameter tensors."""
    settings = experiment.compression
    if not settings.on:
        return Wire(lambda update, round, client: TensorArray(update), tensor_of, None)
    codec = Codec(sizes, settings.bits, settings.scale, settings.bucket)

    def write(update: Tensor, round: int, client: int) -> Array:
        # A draw for each client: rounding errors that all have in common would not average out.
        source = generator(experiment.seed, "quantise", round=round, client=client)
        return packet_array(codec, update, generator=source)

    return Wire(write, partial(packet_tensor, codec), codec)


def packet_array(codec: Codec, update: Tensor, *, generator: torch.Generator) -> Array:
    """Quantise an update (d,) into an array of bytes."""
    data = codec.encode(update, generator=generator)
    return Array("uint8", (len(data),), PACKET, data)


def packet_tensor(codec: Codec, array: Array) -> Tensor:
    """Read an update (d,) from an array of bytes, trusting none of its claims.

    Raises
    ------
    ValueError
        If the array is no packet, or its bytes are not one of these sizes and settings.
    """
    if array.stype != PACKET or array.dtype != "uint8":
        raise ValueError(f"{array.stype!r:.40} of {array.dtype!r:.20}, expected a uint8 packet")
    if tuple(array.shape) != (len(array.data),):
        raise ValueError(f"declared shape {tuple(array.shape)}, the packet has {len(array.data)}")
    return codec.decode(array.data)


def payload(content: RecordDict) -> int:
    """Return the bytes of the numbers in a message's arrays; headers of npy are left out.

    Flower's size mods count the same but for 128 bytes of header an array.
    """
    return sum(
        _weight(array)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )


def _weight(array: Array) -> int:
    if array.stype == NPY:
        return math.prod(array.shape) * np.dtype(array.dtype).itemsize
    return len(array.data)
