"""From the replies' layers to the matrix of updates, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower.model_replies import Key, Layout, ModelReply, Sent, Values, start_of
from fedrobust.model_layers import Layers

Known = dict[str, Callable[[], Any]]


def starts_of(
    accepted: list[ModelReply], layout: Layout, sent: Sent
) -> dict[int, dict[Key, np.ndarray]]:
    """Return what each reply's coordinates continue from; one copy where all were sent the same."""
    made: dict[int, dict[Key, np.ndarray]] = {}
    starts = {}
    for reply in accepted:
        arrays = sent.arrays[reply.node]
        if id(arrays) not in made:
            found = {key: start_of(key, layout.slots[key][1], arrays) for key in layout.coordinates}
            made[id(arrays)] = {key: value for key, value in found.items() if value is not None}
        starts[reply.node] = made[id(arrays)]
    return starts


def matrix_of(
    accepted: list[ModelReply], layout: Layout, starts: dict[int, dict[Key, np.ndarray]]
) -> Tensor:
    """Stack the updates, (n, d): float64 where the clients send float64, float32 elsewhere."""
    keys = layout.coordinates
    sizes = [int(np.prod(layout.slots[key][1], dtype=np.int64)) for key in keys]
    wide = any(usual_dtype(key, accepted) == np.float64 for key in keys)
    rows = np.empty((len(accepted), sum(sizes)), np.float64 if wide else np.float32)
    for row, reply in zip(rows, accepted, strict=True):
        offset = 0
        for key, size in zip(keys, sizes, strict=True):
            part = row[offset : offset + size]
            start = starts[reply.node].get(key)
            with np.errstate(over="ignore"):  # a huge value turns infinite: the rule sets it aside
                part[:] = reply.values[key].reshape(-1)
                if start is not None:
                    part -= start.reshape(-1).astype(rows.dtype)
            offset += size
    return torch.from_numpy(rows)


def known_of(layout: Layout, starts: dict[int, dict[Key, np.ndarray]]) -> Known:
    """Return what a rule or an attack may ask of the model, by name; computed when asked.

    A tensor is known by its name, or as ``record/name`` where two records hold that name.
    """
    keys = layout.coordinates
    names = [name for _, name in keys]

    def layers() -> Layers:
        return tuple(
            (name if names.count(name) == 1 else f"{record}/{name}", layout.slots[record, name][1])
            for record, name in keys
        )

    return {"layers": layers, "model": lambda: _start(keys, starts)}


def invented(updates: Tensor) -> Known:
    """Return what a rule may ask of an invented model, as long as the updates."""
    layers = (("rehearsal", tuple(updates.shape[1:])),)
    return {"layers": lambda: layers, "model": lambda: torch.ones_like(updates[0])}


def _start(keys: list[Key], starts: dict[int, dict[Key, np.ndarray]]) -> Tensor:
    """Return the one vector that all replies continue."""
    different = {id(start): start for start in starts.values()}
    if len(different) != 1:
        raise Refusal(
            "the rule needs one model that all nodes start from, and they were sent several"
        )
    (start,) = different.values()
    if missing := [name for record, name in keys if (record, name) not in start]:
        raise Refusal(f"the rule needs the model that nodes start from; nobody sent {missing[0]!r}")
    return torch.cat([torch.from_numpy(start[key].astype(np.float64)).reshape(-1) for key in keys])


def usual_dtype(key: Key, accepted: list[ModelReply]) -> np.dtype:
    """Return the type that most replies give an array; the narrower one of a tie."""
    found = [reply.values[key].dtype for reply in accepted]
    return max(set(found), key=lambda dtype: (found.count(dtype), -dtype.itemsize))


def arrays_of(
    layout: Layout,
    start: dict[Key, np.ndarray],
    step: Tensor,
    others: Values,
    dtypes: dict[Key, np.dtype],
) -> dict[Key, Array]:
    """Write ``start`` plus a step (d,) as arrays, a step of zero as a tensor without dimensions."""
    made: dict[Key, Array] = {}
    offset, flat = 0, step.numpy()
    for key, (_, shape) in layout.slots.items():
        if key in others:
            made[key] = Array(np.asarray(others[key]))
            continue
        size = int(np.prod(shape, dtype=np.int64))
        part = flat[offset : offset + size].reshape(shape) if flat.ndim else flat
        offset += size
        value = (
            part + start[key].astype(flat.dtype) if key in start else np.broadcast_to(part, shape)
        )
        made[key] = Array(np.asarray(value, dtype=dtypes[key]).copy())
    return made


def as_whole(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to an integer or boolean type; values beyond its range become its ends."""
    if values.dtype == dtype:
        return values
    if dtype.kind == "b":
        return np.asarray(values != 0)
    ends = np.iinfo(dtype)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    with np.errstate(invalid="ignore"):  # 2^63 has no neighbour among the floats
        return np.asarray(np.clip(whole, float(ends.min), float(ends.max)).astype(dtype))
