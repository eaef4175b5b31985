"""Flower's own robust strategies as rules: their code, on the weights that clients would answer.

``fedrobust benchmark experiments/board/flower_rules.py:flower_krum``. FedAvg with equal examples is
``mean``. A strategy sees whole models, as in a Flower app: the global model less the update.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from torch import Tensor

EQUAL = MetricRecord({"num-examples": 1})


def flower_median(updates: Tensor, *, model: Tensor) -> Tensor:
    """FedMedian: the median of each coordinate."""
    return _aggregated(FedMedian(), updates, model)


def flower_trimmed_avg(updates: Tensor, *, f: int, model: Tensor) -> Tensor:
    """FedTrimmedAvg, told to cut a share of f / n on either side."""
    # A quarter more than f: Flower rounds the count down, and 4 / 20 * 20 may be 3.99.
    return _aggregated(FedTrimmedAvg(beta=(f + 0.25) / len(updates)), updates, model)


def flower_krum(updates: Tensor, *, f: int, model: Tensor) -> Tensor:
    """Krum, of which Flower does not ask 2 f + 3 replies."""
    return _aggregated(Krum(num_malicious_nodes=f), updates, model)


def flower_multi_krum(updates: Tensor, *, f: int, model: Tensor) -> Tensor:
    """MultiKrum, that averages the n - f updates of the lowest scores."""
    kept = len(updates) - f
    strategy = MultiKrum(num_malicious_nodes=f, num_nodes_to_select=kept)
    return _aggregated(strategy, updates, model)


def flower_bulyan(updates: Tensor, *, f: int, model: Tensor) -> Tensor:
    """Bulyan; picks by MultiKrum's scores in one go.

    Raises
    ------
    ValueError
        If ``n < 4 f + 3``: Flower then keeps the model, with a warning in its log.
    """
    return _aggregated(Bulyan(num_malicious_nodes=f), updates, model)


def _aggregated(strategy: FedAvg, updates: Tensor, model: Tensor) -> Tensor:
    weights = (model - updates).numpy()
    with _quiet():
        arrays, _ = strategy.aggregate_train(1, [_reply(i, row) for i, row in enumerate(weights)])
    if arrays is None:
        raise ValueError(f"{type(strategy).__name__} does not aggregate {len(updates)} updates")
    (array,) = arrays.values()
    return model - torch.from_numpy(np.array(array.numpy(), dtype=np.float32))


def _reply(client: int, weights: np.ndarray) -> Message:
    """Return what a client would answer, with as many examples as everybody."""
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": EQUAL})
    # With all of its metadata: a run's identity exists in a Flower app alone.
    metadata = Metadata(
        run_id=1, message_id=f"{client}", src_node_id=client + 1, dst_node_id=1,
        reply_to_message_id="", group_id="1", created_at=0.0, ttl=1.0, message_type="train",
    )  # fmt: skip
    return Message(content, metadata=metadata)  # type: ignore[call-overload]  # Flower's own way


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's line for every call out of the log: attackers ask many thousand times."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
