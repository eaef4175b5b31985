"""The trust boundary: one function that screens a client's reply."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedrobust.flower.wire import tensor_of

RECORDS = {"arrays", "metrics"}
ARRAYS = {"update"}
METRICS = {"num-examples", "loss"}


class Rejected(ValueError):
    """Why a reply lost its vote."""


@dataclass(frozen=True)
class Reply:
    """A reply that passed: its update (d,), and what the client claims of itself."""

    update: Tensor
    examples: int
    loss: float


def screen(message: Message, *, d: int, most_examples: int, largest: float = 1e10) -> Reply:
    """Accept a well-formed reply, or say why not.

    Parameters
    ----------
    message
        What came back.
    d
        Number of coordinates that the update must have.
    most_examples
        Size of the whole training set: no client can hold more.
    largest
        Greatest magnitude of a coordinate.

    Raises
    ------
    Rejected
        For an error reply; missing or extra keys; wrong type, shape, dtype or byte length;
        values not finite or beyond ``largest``; impossible metrics. Whatever a reply holds,
        nothing else is raised.
    """
    try:
        return _screened(message, d, most_examples, largest)
    except Rejected:
        raise
    except Exception as error:  # a hostile reply may break any accessor: it costs only its vote
        raise Rejected(f"unreadable reply ({type(error).__name__}: {str(error)[:120]})") from error


def _screened(message: Message, d: int, most_examples: int, largest: float) -> Reply:
    if message.has_error():
        raise Rejected(f"error reply: {' '.join(str(message.error.reason).split())[:200]}")
    content = message.content
    _keys("records", set(content.keys()), RECORDS)
    arrays, metrics = content["arrays"], content["metrics"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
        raise Rejected("records of the wrong kind")
    _keys("arrays", set(arrays.keys()), ARRAYS)
    _keys("metrics", set(metrics.keys()), METRICS)
    if tuple(arrays["update"].shape) != (d,):
        raise Rejected(f"update of shape {tuple(arrays['update'].shape)}, expected ({d},)")
    update = _update(arrays, d, largest)
    return Reply(update, *_metrics(metrics, most_examples))


def _keys(what: str, found: set[str], expected: set[str]) -> None:
    if missing := expected - found:
        raise Rejected(f"missing {what}: {', '.join(sorted(missing))}")
    if extra := found - expected:
        raise Rejected(f"extra {what}: {', '.join(sorted(extra))[:80]}")


def _update(arrays: ArrayRecord, d: int, largest: float) -> Tensor:
    try:
        update = tensor_of(arrays["update"])
    except ValueError as error:
        raise Rejected(f"update: {error}") from error
    if tuple(update.shape) != (d,):
        raise Rejected(f"update of shape {tuple(update.shape)}, expected ({d},)")
    low, high = (float(bound) for bound in torch.aminmax(update))
    greatest = max(-low, high) if low == low and high == high else math.nan
    if not math.isfinite(greatest):
        raise Rejected("update holds values that are not finite")
    if greatest > largest:
        raise Rejected(f"update holds a value of magnitude {greatest:.3g}, beyond {largest:.3g}")
    return update


def _metrics(metrics: MetricRecord, most_examples: int) -> tuple[int, float]:
    examples, loss = metrics["num-examples"], metrics["loss"]
    if not isinstance(examples, int) or not 1 <= examples <= most_examples:
        raise Rejected(f"num-examples {examples!r:.40} outside 1..{most_examples}")
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise Rejected(f"loss {loss!r:.40} is no finite number")
    return examples, loss
