"""The replies of a host's clients as blocks: arrays of one shape as one, numbers as lists.

A message for each client costs more than a small update. Replies that have the same records of the
same shapes travel together; one of its own kind (quantised, broken on purpose) travels by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedrobust.flower.serialization import TensorArray, read_setting, tensor_of
from fedrobust.flower.shared_rows import Dealt, Handle, HandleError, mark
from fedrobust.flower.update_matrix import RowArray, UpdateMatrix

BLOCK = "block"  # begins the names of a block's records; a single client's begin with its number
UPDATE = ("arrays", "update")  # the record and array that may stand in shared rows
Parts = dict[int, dict[str, Any]]  # client -> name -> record


def pack(
    contents: Mapping[int, RecordDict], matrix: UpdateMatrix, dealt: Dealt | None = None
) -> RecordDict:
    """Put the contents of several clients' replies into one.

    Parameters
    ----------
    contents
        Client -> what it answers.
    matrix
        Where updates may stand as rows already; its rows may be moved.
    dealt
        The shared rows that updates are to stand in; None: all travels as bytes.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for client, content in contents.items():
        groups[_shape_of(content)].append(client)
    packed = RecordDict()
    # The largest last: it may be a part of the matrix itself, where no other block moves rows then.
    ranked = sorted(groups.items(), key=lambda group: len(group[1]))
    for number, (shape, clients) in enumerate(ranked):
        if shape is None:
            for client in clients:
                for key, record in contents[client].items():
                    packed[f"{client}/{key}"] = record
        else:
            own = matrix if number == len(ranked) - 1 else UpdateMatrix()
            _pack_block(packed, f"{BLOCK}{number}", [(c, contents[c]) for c in clients], own, dealt)
    return packed


def unpack(
    content: RecordDict, matrix: UpdateMatrix, handle: Handle | None
) -> tuple[Parts, dict[int, str]]:
    """Return each client's records, and why there are none of others'.

    Parameters
    ----------
    matrix, handle
        Of the rows that the host was told to write.
    """
    parts: Parts = defaultdict(dict)
    wrong: dict[int, str] = {}
    blocks = [key for key in content if key.startswith(BLOCK) and "/" not in key]
    for block in blocks:
        clients = [int(client) for client in read_setting(content, block, "clients")]
        begin = f"{block}/"
        for client in clients:
            parts[client].clear()  # there, also where it answers with nothing
        for key, record in content.items():
            if key.startswith(begin):
                _spread(parts, clients, key.removeprefix(begin), record)
        if read_setting(content, block, "nonce") is not None:
            _take_rows(parts, wrong, clients, content[block], matrix, handle)
    for key, record in content.items():
        first, _, name = key.partition("/")
        if name and first.isdigit():
            parts[int(first)][name] = record
    return parts, wrong


def _shape_of(content: RecordDict) -> Hashable | None:
    """Return what replies have in common that travel as one; None for one by itself."""
    shape: list[Hashable] = []
    for key, record in content.items():
        if isinstance(record, MetricRecord):
            if any(isinstance(value, list) for value in record.values()):
                return None
            shape.append((key, tuple((name, type(value)) for name, value in record.items())))
        elif isinstance(record, ArrayRecord):
            if not all(_plain(array) for array in record.values()):
                return None
            shape.append((key, tuple((name, array.shape) for name, array in record.items())))
        else:
            return None
    return tuple(shape)


def _plain(array: Array) -> bool:
    return isinstance(array, TensorArray) and array.dtype == "float32"


def _pack_block(
    packed: RecordDict,
    block: str,
    replies: Sequence[tuple[int, RecordDict]],
    matrix: UpdateMatrix,
    dealt: Dealt | None,
) -> None:
    """Write one block: who is in it, and each record for all of them."""
    clients = [client for client, _ in replies]
    told: dict[str, Any] = {"clients": clients}
    for key, first in replies[0][1].items():
        records: list[Any] = [content[key] for _, content in replies]
        if isinstance(first, MetricRecord):
            packed[f"{block}/{key}"] = MetricRecord({n: [r[n] for r in records] for n in first})
            continue
        together = ArrayRecord()
        for name in first:
            tensors = [record[name].tensor for record in records]
            if (key, name) != UPDATE or tensors[0].dim() != 1:
                together[name] = TensorArray(torch.stack(tensors))
            elif dealt is not None and tensors[0].numel() == dealt.handle.d:
                told |= _in_rows(clients, tensors, dealt)
            else:
                together[name] = TensorArray(matrix.gather(tensors))
        packed[f"{block}/{key}"] = together
    packed[block] = ConfigRecord(told)


def _in_rows(clients: Sequence[int], updates: Sequence[Tensor], dealt: Dealt) -> dict[str, Any]:
    """See that updates stand in their shared rows; return what the server is told of them."""
    rows = [dealt.row(client) for client in clients]
    for row, update in zip(rows, updates, strict=True):
        if row.data_ptr() != update.data_ptr():
            row.copy_(update)
    return {
        "nonce": dealt.handle.nonce,
        "rows": [dealt.slots[client] for client in clients],
        "marks": [mark(row) for row in rows],
    }


def _spread(parts: Parts, clients: Sequence[int], name: str, record: Any) -> None:
    """Give each client its own part of a block's record.

    Raises
    ------
    ValueError
        If there are more parts, or fewer, than clients.
    """
    arrays = isinstance(record, ArrayRecord)
    held = {key: tensor_of(one).unbind(0) if arrays else one for key, one in record.items()}
    if any(len(values) != len(clients) for values in held.values()):
        raise ValueError(f"a block's {name[:40]!r} is not for its {len(clients)} clients")
    for i, client in enumerate(clients):
        own: Any = ArrayRecord() if arrays else MetricRecord()
        for key, values in held.items():
            own[key] = TensorArray(values[i]) if arrays else values[i]
        parts[client][name] = own


def _take_rows(
    parts: Parts,
    wrong: dict[int, str],
    clients: Sequence[int],
    told: Any,
    matrix: UpdateMatrix,
    handle: Handle | None,
) -> None:
    """Put clients' shared rows into their records, where each is the row that it was told."""
    if handle is None or told["nonce"] != handle.nonce:
        raise HandleError("rows of a matrix that was not shared in this round")
    record, name = UPDATE
    for client, row, seen in zip(clients, told["rows"], told["marks"], strict=True):
        if row != matrix.slot(client) or seen != mark(matrix.handed(client)):
            wrong[client] = f"row {row!r:.20} of the shared matrix is not client {client}'s update"
        else:
            parts[client][record][name] = RowArray(matrix, client)
