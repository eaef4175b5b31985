"""Commit and reveal on the wire: what the server asks of file workers, and how replies are read.

Stages of a round: "commit" (a digest per file), "sketch" (a linear sketch per file, with a seed
that was unknown before), "reveal" (gradients of single files), "sum" (one sum over files), and for
DRACO's cyclic code "code" (one complex combination). Readers raise `Rejected` and nothing else,
whatever a reply holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedrobust.flower.screening import Rejected, finite_vector
from fedrobust.flower.wire import array_of, read_setting
from fedrobust.redundancy.uploads import DIGEST

SCHEME = "scheme"
STAGES = ("commit", "sketch", "reveal", "sum", "code")

T = TypeVar("T")


def order(stage: str, **settings: Any) -> ConfigRecord:
    """Return the record that tells workers the stage and its settings."""
    return ConfigRecord({"stage": stage, **settings})


def setting(message: Message, key: str) -> Any:
    """Read one setting of an order; None where it is not there."""
    return read_setting(message.content, SCHEME, key)


def digests_reply(message: Message, digests: Sequence[bytes]) -> Message:
    """Commit: digests in the order of the worker's files."""
    record = ConfigRecord({"digests": b"".join(digests)})
    return Message(RecordDict({SCHEME: record}), reply_to=message)


def sketches_reply(message: Message, sketches: Tensor) -> Message:
    """Send sketches (files, size) as little-endian float64."""
    data = sketches.contiguous().numpy().astype("<f8", copy=False).tobytes()
    return Message(RecordDict({SCHEME: ConfigRecord({"sketches": data})}), reply_to=message)


def values_reply(message: Message, values: dict[str, Tensor]) -> Message:
    """Reveal named vectors: one array a file, or "sum", or "code"."""
    return Message(RecordDict({"arrays": array_of(**values)}), reply_to=message)


def _guarded(read: Callable[..., T]) -> Callable[..., T]:
    """Turn whatever a hostile reply raises into `Rejected`."""

    @wraps(read)
    def guarded(message: Message, *args: Any, **settings: Any) -> T:
        try:
            if message.has_error():
                raise Rejected(f"error reply: {str(message.error.reason)[:200]}")
            return read(message, *args, **settings)
        except Rejected:
            raise
        except Exception as error:  # a hostile reply may break any accessor: it costs its sender
            told = f"{type(error).__name__}: {str(error)[:120]}"
            raise Rejected(f"unreadable reply ({told})") from error

    return guarded


@_guarded
def read_digests(message: Message, *, files: int) -> tuple[bytes, ...]:
    """Read one digest for each of a worker's files."""
    data = _bytes(message, "digests", files * DIGEST)
    return tuple(data[i : i + DIGEST] for i in range(0, len(data), DIGEST))


@_guarded
def read_sketches(message: Message, *, files: int, size: int) -> Tensor:
    """Read float64 sketches (files, size); NaN and Inf stay, and agree with nothing."""
    data = _bytes(message, "sketches", files * size * 8)
    return torch.from_numpy(np.frombuffer(data, dtype="<f8").copy()).view(files, size)


@_guarded
def read_values(
    message: Message, names: Sequence[str], *, shape: tuple[int, ...], largest: float
) -> dict[str, Tensor | str]:
    """Read the named arrays: each a tensor, or the reason why it is not accepted."""
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise Rejected("records of the wrong kind")
    extra = set(arrays.keys()) - set(names)
    if extra:
        raise Rejected(f"extra arrays: {', '.join(sorted(extra))[:80]}")
    return {name: _value(arrays.get(name), shape, largest) for name in names}


def _value(array: Array | None, shape: tuple[int, ...], largest: float) -> Tensor | str:
    if array is None:
        return "missing value"
    try:
        return finite_vector("value", array, shape=shape, largest=largest)
    except Rejected as reason:
        return str(reason)


def _bytes(message: Message, key: str, length: int) -> bytes:
    data = setting(message, key)
    if not isinstance(data, bytes):
        raise Rejected(f"the reply holds no {key}")
    if len(data) != length:
        raise Rejected(f"{len(data)} bytes of {key}, expected {length}")
    return data
