"""What nodes remember between messages, as plain trees: for checkpoints of runs that hold it."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrobust.flower.serialization import TensorArray, array_of
from fedrobust.flower.wrapping import innermost

Tree = dict[Any, Any]
KINDS = {"config": ConfigRecord, "metrics": MetricRecord}


def snapshot(grid: Grid) -> Tree | None:
    """Return every node's state; None where the nodes are other processes and keep it themselves.

    Tensors are handed out by reference, as everywhere in process: nobody writes into them.
    """
    contexts = _contexts(grid)
    if contexts is None:
        return None
    return {node: _tree(context.state) for node, context in contexts.items()}


def restore(grid: Grid, states: Tree) -> None:
    """Put a snapshot back into the nodes of a grid of the same size that holds their states."""
    contexts = _contexts(grid)
    if contexts is None or set(states) != set(contexts):
        raise ValueError("the nodes' states belong to a grid of another kind or size")
    for node, context in contexts.items():
        context.state = _records(states[node])


def _contexts(grid: Grid) -> dict[int, Context] | None:
    """Return the contexts that a grid's server holds, by node; None where the nodes hold them."""
    return getattr(innermost(grid), "contexts", None)


def _tree(state: RecordDict) -> Tree:
    tree: Tree = {}
    for key, record in state.items():
        if isinstance(record, ArrayRecord):
            tree[key] = {"kind": "arrays", "values": {k: tensor_in(a) for k, a in record.items()}}
        else:
            kind = "config" if isinstance(record, ConfigRecord) else "metrics"
            tree[key] = {"kind": kind, "values": dict(record.items())}
    return tree


def tensor_in(array: Any) -> torch.Tensor:
    """Read an array of this process's own making: any dtype."""
    return array.tensor if isinstance(array, TensorArray) else torch.from_numpy(array.numpy())


def _records(tree: Tree) -> RecordDict:
    records = RecordDict()
    for key, entry in tree.items():
        values = entry["values"]
        known = KINDS.get(entry["kind"])
        records[key] = known(values) if known else array_of(**values)
    return records
