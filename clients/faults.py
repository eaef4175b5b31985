"""Replies that are broken on purpose: each declared fault and the client that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from clients import honest
from clients.honest import Trained
from fedrobust.attacks import ATTACKS, POISONS, TRAINED, threat_model


def reply_with(message: Message, trained: Trained, **arrays: Array) -> Message:
    """Return an honest reply with other arrays."""
    reply = honest.respond(message, trained)
    record = ArrayRecord()
    for key, array in arrays.items():
        record[key] = array
    reply.content["arrays"] = record
    return reply


def _with_update(change: Callable[[Tensor], Tensor]) -> Callable[[Message, Trained], Message]:
    def fault(message: Message, trained: Trained) -> Message:
        return honest.respond(message, replace(trained, update=change(trained.update)))

    return fault


def _with_examples(claim: int) -> Callable[[Message, Trained], Message]:
    return lambda message, trained: honest.respond(message, replace(trained, examples=claim))


def _missing_key(message: Message, trained: Trained) -> Message:
    return reply_with(message, trained)


def _extra_key(message: Message, trained: Trained) -> Message:
    update = Array(trained.update.cpu().numpy())
    return reply_with(message, trained, update=update, surprise=update)


def _garbage(message: Message, trained: Trained) -> Message:
    array = Array("float32", tuple(trained.update.shape), "numpy.ndarray", b"\x93NUMPY garbage")
    return reply_with(message, trained, update=array)


def _exception(message: Message, trained: Trained) -> Message:
    raise RuntimeError("a malicious client raises on purpose")


def _silence(message: Message, trained: Trained) -> None:
    return None


def _first_becomes(value: float) -> Callable[[Tensor], Tensor]:
    return lambda update: torch.cat([torch.full_like(update[:1], value), update[1:]])


FAULTY: dict[str, Callable[[Message, Trained], Message | None]] = {
    "missing_key": _missing_key,
    "extra_key": _extra_key,
    "wrong_shape": _with_update(lambda update: torch.cat([update, update[:1]])),
    "wrong_dtype": _with_update(lambda update: update.double()),
    "oversized": _with_update(lambda update: torch.cat([update, update])),
    "nan_value": _with_update(_first_becomes(float("nan"))),
    "inf_value": _with_update(_first_becomes(float("inf"))),
    # Finite itself, while its square overflows float32: distances to it are infinite.
    "huge": _with_update(lambda update: torch.full_like(update, 1e30)),
    # Both were seen in Flower's weighted averages: 1e9 became the result, -14 gave a negative
    # average.
    "many_examples": _with_examples(10**9),
    "negative_examples": _with_examples(-14),
    "garbage": _garbage,
    "exception": _exception,
    "silence": _silence,
}

assert set(FAULTY) == set(threat_model.FAULTS), "each declared fault needs its client"
assert not set(FAULTY) & (set(ATTACKS) | set(POISONS) | set(TRAINED)), (
    "a fault may not shadow an attack"
)
