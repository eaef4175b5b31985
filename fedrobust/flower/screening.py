"""The trust boundary: one function that screens a client's reply."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedrobust.flower.quantized_arrays import payload
from fedrobust.flower.serialization import tensor_of
from fedrobust.text import printable

RECORDS = {"arrays", "metrics"}
ARRAYS = {"update"}
METRICS = {"num-examples", "loss"}
TIMES = {"attack-seconds", "train-seconds", "encode-seconds"}
LONGEST = 1e6  # seconds


class Rejected(ValueError):
    """Why a reply lost its vote: one printable line, whatever the sender wrote into it."""

    def __init__(self, reason: object) -> None:
        super().__init__(printable(reason))


@dataclass(frozen=True)
class Reply:
    """A reply that passed: its update (d,), and what the client claims of itself.

    Attributes
    ----------
    statistics
        Running statistics of BatchNorm (b,), where the model has any.
    size
        Bytes of its arrays on the wire.
    times
        Seconds that it claims to have spent, where it was asked.
    """

    update: Tensor
    examples: int
    loss: float
    statistics: Tensor | None = None
    size: int = 0
    times: dict[str, float] = field(default_factory=dict)


def screen(
    message: Message,
    *,
    d: int,
    most_examples: int,
    largest: float = 1e10,
    read: Callable[[Array], Tensor] = tensor_of,
    variances: Tensor | None = None,
    times: bool = False,
) -> Reply:
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
    read
        What turns the array into the update: another one where updates are quantised.
    variances
        Where the model has running statistics: which of them may not be negative, (b,).
    times
        Whether the client was asked how long it took.

    Raises
    ------
    Rejected
        For an error reply; missing or extra keys; wrong type, shape, dtype or byte length;
        values not finite or beyond ``largest``; impossible metrics. Whatever a reply holds,
        nothing else is raised.
    """
    try:
        return _screened(message, d, most_examples, largest, read, variances, times)
    except Rejected:
        raise
    except Exception as error:  # a hostile reply may break any accessor: it costs only its vote
        raise Rejected(f"unreadable reply ({type(error).__name__}: {str(error)[:120]})") from error


def _screened(
    message: Message,
    d: int,
    most_examples: int,
    largest: float,
    read: Callable[[Array], Tensor],
    variances: Tensor | None,
    times: bool,
) -> Reply:
    if message.has_error():
        raise Rejected(f"error reply: {str(message.error.reason)[:200]}")
    content = message.content
    _keys("records", set(content.keys()), RECORDS)
    arrays, metrics = content["arrays"], content["metrics"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
        raise Rejected("records of the wrong kind")
    tracked = variances is not None and variances.numel() > 0
    _keys("arrays", set(arrays.keys()), ARRAYS | ({"statistics"} if tracked else set()))
    _keys("metrics", set(metrics.keys()), METRICS | (TIMES if times else set()))
    update = finite_vector("update", arrays["update"], shape=(d,), largest=largest, read=read)
    statistics = None
    if variances is not None and tracked:
        statistics = finite_vector(
            "statistics", arrays["statistics"], shape=(len(variances),), largest=largest
        )
        if bool((statistics[variances] < 0).any()):
            raise Rejected("statistics hold a negative variance")
    examples, loss = _metrics(metrics, most_examples)
    spent = {key: _seconds(key, metrics[key]) for key in sorted(TIMES)} if times else {}
    return Reply(update, examples, loss, statistics, payload(content), spent)


def _keys(what: str, found: set[str], expected: set[str]) -> None:
    if missing := expected - found:
        raise Rejected(f"missing {what}: {', '.join(sorted(missing))}")
    if extra := found - expected:
        raise Rejected(f"extra {what}: {', '.join(sorted(extra))[:80]}")


def finite_vector(
    key: str,
    array: Array,
    *,
    shape: tuple[int, ...],
    largest: float,
    read: Callable[[Array], Tensor] = tensor_of,
) -> Tensor:
    """Read an array of a known shape whose values are finite: what every channel is screened by.

    Parameters
    ----------
    key
        What it is called where it is refused.
    shape
        The only one that is accepted, declared and real.
    largest
        Greatest magnitude of a value.
    read
        What turns the array into the tensor.

    Raises
    ------
    Rejected
        If it is anything else.
    """
    # Before any byte is read; a packet declares its number of bytes, not the update's shape.
    if read is tensor_of and tuple(array.shape) != shape:
        raise Rejected(f"{key} of shape {tuple(array.shape)}, expected {shape}")
    try:
        values = read(array)
    except ValueError as error:
        raise Rejected(f"{key}: {error}") from error
    if tuple(values.shape) != shape:
        raise Rejected(f"{key} of shape {tuple(values.shape)}, expected {shape}")
    if not values.numel():
        return values
    # One pass without a temporary of d values; a NaN anywhere comes through in both.
    low, high = (float(bound) for bound in torch.aminmax(values))
    greatest = max(-low, high) if low == low and high == high else math.nan
    if not math.isfinite(greatest):
        raise Rejected(f"{key} holds values that are not finite")
    if greatest > largest:
        raise Rejected(f"{key} holds a value of magnitude {greatest:.3g}, beyond {largest:.3g}")
    return values


def _seconds(key: str, value: object) -> float:
    if not isinstance(value, float) or not 0 <= value <= LONGEST:
        raise Rejected(f"{key} {value!r:.40} is no time in seconds")
    return value


def _metrics(metrics: MetricRecord, most_examples: int) -> tuple[int, float]:
    examples, loss = metrics["num-examples"], metrics["loss"]
    if not isinstance(examples, int) or not 1 <= examples <= most_examples:
        raise Rejected(f"num-examples {examples!r:.40} outside 1..{most_examples}")
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise Rejected(f"loss {loss!r:.40} is no finite number")
    return examples, loss
