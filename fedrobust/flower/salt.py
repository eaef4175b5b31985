"""A salt in everything the server sends, so that no id of Flower's can be computed beforehand.

Flower names messages and objects by the hash of their content, and stores what it is told of first.
A node that computes the id of the server's next object announces it with other children, and the
server's own push fails; one that computes the id of the message to another node answers it in that
node's name. So each object gets bytes that nobody can guess, and none that a number depends on:
records of settings a key, npy arrays a comment in their header and chunks cut at random places,
messages a random group.
"""

from __future__ import annotations

import ast
import io
import secrets
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedrobust.flower._compat import CHUNK, cut, set_message_id
from fedrobust.flower.serialization import LONGEST_HEADER, NPY

SALT = "fedrobust.salt"
BYTES = 16
PIECES = 8  # of an array that has no header of its own
ALIGNMENT = 64  # of the numbers in an npy file


def salted(messages: Iterable[Message]) -> list[Message]:
    """Return copies of messages with the same numbers and settings and fresh object ids.

    What messages share, their copies share too: it is sent once. The number of a chunk's possible
    ids is the number of places at which it may begin and end: at least 10^6 for the last one of an
    array above 5 MB, 2^128 for all that hold a header.
    """
    copies: dict[int, Any] = {}
    return [_message(message, copies) for message in messages]


def take_ids(messages: Iterable[Message], sent: Iterable[Message]) -> None:
    """Give messages the ids under which their copies were sent: replies name those."""
    for message, copy in zip(messages, sent, strict=True):
        set_message_id(message, copy.metadata.message_id)


def _message(message: Message, copies: dict[int, Any]) -> Message:
    m = message.metadata
    group = f"{m.group_id}-{secrets.token_hex(BYTES)}"
    content = _once(message.content, copies, _content)
    return Message(content, m.dst_node_id, m.message_type, ttl=m.ttl, group_id=group)


def _once(value: Any, copies: dict[int, Any], make: Any) -> Any:
    """Copy a value once, however many hold it; the originals outlive the call."""
    if id(value) not in copies:
        copies[id(value)] = make(value, copies)
    return copies[id(value)]


def _content(content: RecordDict, copies: dict[int, Any]) -> RecordDict:
    records = {name: _once(record, copies, _record) for name, record in content.items()}
    return RecordDict({**records, SALT: ConfigRecord({"salt": secrets.token_hex(BYTES)})})


def _record(record: Any, copies: dict[int, Any]) -> Any:
    if isinstance(record, ArrayRecord):
        result = ArrayRecord()
        for name, array in record.items():
            result[name] = _once(array, copies, lambda array, copies: salted_array(array))
        return result
    if isinstance(record, ConfigRecord):
        return ConfigRecord({**record, SALT: secrets.token_hex(BYTES)})
    return MetricRecord({**record, SALT: secrets.randbits(62)})  # a signed 64-bit number


def salted_array(array: Array) -> Array:
    """Return an array of the same numbers whose chunks nobody can name."""
    data = array.data
    if array.stype == NPY:
        data = _with_comment(data)
        ends = _places(len(data), CHUNK // 2, CHUNK)
    else:
        ends = _places(len(data), 1, max(1, min(CHUNK, 2 * len(data) // PIECES)))
    return cut(Array(array.dtype, tuple(array.shape), array.stype, data), ends)


def _places(size: int, least: int, most: int) -> list[int]:
    """Return where chunks end: each but the last has from ``least`` to ``most`` bytes."""
    ends, end = [], 0
    while size - end > most:
        end += least + secrets.randbelow(most - least + 1)
        ends.append(end)
    return [*ends, size]


def _with_comment(data: bytes) -> bytes:
    """Write a comment into an npy header, which Python's own reader of literals passes over."""
    stream = io.BytesIO(data[:LONGEST_HEADER])
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy version {version}, expected (1, 0)")
    length = int.from_bytes(stream.read(2), "little")
    start = stream.tell() + length
    words = data[stream.tell() : start].decode("latin-1").rstrip()
    ast.literal_eval(words)  # the server's own: a header that is none is an error here
    words = f"{words} #{secrets.token_hex(BYTES)}"
    head = stream.tell() + len(words) + 1
    words += " " * (-head % ALIGNMENT) + "\n"
    opening = data[: stream.tell() - 2] + len(words).to_bytes(2, "little")
    return b"".join((opening, words.encode("latin-1"), memoryview(data)[start:]))
