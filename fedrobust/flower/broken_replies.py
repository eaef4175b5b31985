"""Replies that no honest client sends: what one node can do without any mathematics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedrobust.flower.in_process import RAISED
from fedrobust.flower.model_replies import array_values

Broken = Callable[[Message, Message], Message | None]  # (question, honest reply) -> what is sent


class NotApplicable(ValueError):
    """Why a reply cannot be broken in this way: it has nothing of the kind."""


def _parts(reply: Message) -> RecordDict:
    """Copy a reply's content down to its records; their arrays and numbers are shared."""
    content = RecordDict()
    for name, held in reply.content.items():
        made = type(held)()
        for key, value in held.items():
            made[key] = value  # type: ignore[assignment]
        content[name] = made
    return content


def _with_arrays(change: Callable[[np.ndarray], np.ndarray]) -> Broken:
    def send(question: Message, reply: Message) -> Message:
        content = _parts(reply)
        for record in _arrays(content):
            for name in record:
                values = array_values(record[name])
                record[name] = Array(np.asarray(change(values)))
        return Message(content, reply_to=question)

    return send


def _arrays(content: RecordDict) -> list[ArrayRecord]:
    records = list(content.array_records.values())
    if not any(records):
        raise NotApplicable("the reply holds no array")
    return records


def _claiming(count: Callable[[float], float]) -> Broken:
    def send(question: Message, reply: Message) -> Message:
        content, changed = _parts(reply), False
        for record in content.metric_records.values():
            for key, value in record.items():
                if _is_count(key) and isinstance(value, int | float):
                    record[key] = count(value)
                    changed = True
        if not changed:
            raise NotApplicable("the reply reports no number of examples")
        return Message(content, reply_to=question)

    return send


def _is_count(key: str) -> bool:
    return any(word in key.lower() for word in ("example", "sample"))


def silence(question: Message, reply: Message) -> None:
    """Never answer."""


def exception(question: Message, reply: Message) -> Message:
    """Answer with the error of a client that raised."""
    return Message(Error(code=RAISED, reason="a hostile client raised"), reply_to=question)


def other_keys(question: Message, reply: Message) -> Message:
    """Answer with layers that nobody knows."""
    content = _parts(reply)
    for record in _arrays(content):
        for name in list(record):
            record[f"hostile-{name}"] = record.pop(name)
    return Message(content, reply_to=question)


def empty(question: Message, reply: Message) -> Message:
    """Answer with nothing."""
    return Message(RecordDict(), reply_to=question)


def extra_metric(question: Message, reply: Message) -> Message:
    """Report one number more than the others."""
    content = _parts(reply)
    for record in content.metric_records.values():
        record["hostile"] = 1.0
    if not content.metric_records:
        content["hostile"] = MetricRecord({"hostile": 1.0})
    return Message(content, reply_to=question)


def garbage(question: Message, reply: Message) -> Message:
    """Answer with bytes that are not the array that they are declared to be."""
    content = _parts(reply)
    for record in _arrays(content):
        for name, array in list(record.items()):
            record[name] = Array(array.dtype, tuple(array.shape), array.stype, b"\x93garbage")
    return Message(content, reply_to=question)


def _nan(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, np.nan) if values.dtype.kind == "f" else values


BROKEN: dict[str, Broken] = {
    "silence": silence,
    "exception": exception,
    "nan_value": _with_arrays(_nan),
    "wrong_shape": _with_arrays(lambda values: np.zeros((values.size + 1,), values.dtype)),
    "other_keys": other_keys,
    "empty": empty,
    "extra_metric": extra_metric,
    "garbage": garbage,
    # In the claim's own type: the number is the attack, another type would be refused for itself.
    "many_examples": _claiming(lambda value: type(value)(10**12)),
    "negative_examples": _claiming(lambda value: type(value)(-3 * abs(value) - 1)),
    "nan_examples": _claiming(lambda value: float("nan")),
}
