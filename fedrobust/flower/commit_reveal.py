"""Commit and reveal on the wire: what the server asks of file workers, and how replies are read.

Stages of a round: "profile" (once a run: which numeric profile a worker has), "commit" (a digest
per file), "sum" (sums over files), "sketch" (a linear sketch per file, with a seed drawn after the
sums came), "reveal" (gradients of single files), and for DRACO's cyclic code "code" (one complex
combination). Readers raise `Rejected` and nothing else, whatever a reply holds.

A commitment is a plain digest, not bound to the node by a nonce. Every reply travels to the server
alone and answers one message of one round: nobody can copy it or replay it. Byzantine workers that
tell one another their digests gain nothing, they can compute every gradient themselves; and who
commits to a true value is asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedrobust.flower.screening import Rejected, finite_vector
from fedrobust.flower.serialization import array_of, read_setting
from fedrobust.redundancy.uploads import DIGEST

SCHEME = "scheme"
STAGES = ("profile", "commit", "sketch", "reveal", "sum", "code")
BUDGET = "reply-arrays", "reply-bytes"
FLOAT, DOUBLE = 4, 8
LONGEST_PROFILE = 300  # characters: it stands in logs and errors

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """What a reply to an order may need: so many arrays, and so many bytes in all."""

    arrays: int
    size: int


def order(stage: str, *, arrays: int = 0, size: int = 0, **settings: Any) -> ConfigRecord:
    """Return the record that tells workers the stage and its settings.

    ``arrays`` and ``size`` say how many arrays and bytes the answer needs: a guarded grid lets so
    much through, and no more. The order itself holds no array to judge by.
    """
    return ConfigRecord({"stage": stage, BUDGET[0]: arrays, BUDGET[1]: size, **settings})


def budget_of(message: Message) -> Budget | None:
    """Return what the answer to an order may need; None for any other message."""
    arrays, size = (setting(message, key) for key in BUDGET)
    known = isinstance(arrays, int) and isinstance(size, int)
    return Budget(arrays, size) if known else None


def setting(message: Message, key: str) -> Any:
    """Read one setting of an order; None where it is not there."""
    return read_setting(message.content, SCHEME, key)


def settings(message: Message) -> Mapping[str, Any]:
    """Return all settings of an order."""
    found = message.content.get(SCHEME)
    return dict(found) if isinstance(found, ConfigRecord) else {}


def profile_reply(message: Message, profile: str, probe: bytes) -> Message:
    """Say on what the bits depend here, and the digest of a gradient that all workers know."""
    record = ConfigRecord({"profile": profile[:LONGEST_PROFILE], "digests": probe})
    return Message(RecordDict({SCHEME: record}), reply_to=message)


def digests_reply(message: Message, digests: Sequence[bytes]) -> Message:
    """Commit: digests in the order of the worker's files."""
    record = ConfigRecord({"digests": b"".join(digests)})
    return Message(RecordDict({SCHEME: record}), reply_to=message)


def sketches_reply(message: Message, sketches: Tensor) -> Message:
    """Send sketches (files, size) as little-endian float32: finer than what they are checked by."""
    data = sketches.float().contiguous().numpy().astype("<f4", copy=False).tobytes()
    return Message(RecordDict({SCHEME: ConfigRecord({"sketches": data})}), reply_to=message)


def values_reply(message: Message, values: dict[str, Tensor]) -> Message:
    """Reveal named vectors: one array a file or a sum, or "code"."""
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
def read_profile(message: Message) -> tuple[str, bytes]:
    """Read what a worker says its profile is, and the digest of the known gradient."""
    told = setting(message, "profile")
    if not isinstance(told, str):
        raise Rejected("the reply holds no profile")
    return told[:LONGEST_PROFILE], _bytes(message, "digests", DIGEST)


@_guarded
def read_digests(message: Message, *, files: int) -> tuple[bytes, ...]:
    """Read one digest for each of a worker's files."""
    data = _bytes(message, "digests", files * DIGEST)
    return tuple(data[i : i + DIGEST] for i in range(0, len(data), DIGEST))


@_guarded
def read_sketches(message: Message, *, files: int, size: int) -> Tensor:
    """Read sketches (files, size) as float64; NaN and Inf stay, and agree with nothing."""
    data = _bytes(message, "sketches", files * size * FLOAT)
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float64)).view(files, size)


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
