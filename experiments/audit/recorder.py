"""What is seen of an app's traffic: between its nodes and whoever attacks or defends it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from threading import RLock
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrobust.flower.in_process import InProcessGrid
from fedrobust.flower.model_replies import (
    SECURE_AGGREGATION,
    Layout,
    Refused,
    array_values,
    difference,
    layout_of,
    readable_arrays,
)
from fedrobust.flower.wrapping import WrappedGrid

ERRORS = 20  # kept, of any number


class CopyingGrid(InProcessGrid):
    """The in-process grid for other people's apps: records are copied each way, as a network does.

    Mods of clients edit the records that they are handed; by reference that edits what the other
    nodes are about to get. The arrays themselves are shared.
    """

    lock = RLock()  # strategies of the older API send from threads

    @property
    def run(self) -> Any:
        """What the older API asks for: an object with a ``run_id``."""
        return type("Run", (), {"run_id": next(iter(self.contexts.values())).run_id})()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run every client, one after the other."""
        with self.lock:
            return super().send_and_receive(messages, timeout=timeout)

    def _deliver(self, message: Message) -> Message | None:
        reply = super()._deliver(_copy(message))
        return reply if reply is None or reply.has_error() else _copy(reply)


def _copy(message: Message) -> Message:
    content = RecordDict()
    for name, held in message.content.items():
        made = type(held)()
        for key, value in held.items():
            made[key] = value  # type: ignore[assignment]
        content[name] = made
    return Message(metadata=message.metadata, content=content)  # type: ignore[call-overload]


class Recorder(WrappedGrid):
    """Note what passes; change nothing.

    Attributes
    ----------
    batches
        One entry a batch of messages: type, nodes, metrics by node, errors, records.
    last
        Message type -> the content sent last.
    """

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self.batches: list[dict[str, Any]] = []
        self.last: dict[str, RecordDict] = {}
        self.first_train: RecordDict | None = None
        self.secure = False

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, receive, note."""
        asked = list(messages)
        before = [self._note_sent(message) for message in asked]
        replies = list(self._inner.send_and_receive(asked, timeout=timeout))
        if asked:
            self._note(asked, before, replies)
        return replies

    def _note_sent(self, message: Message) -> bool:
        kind, content = message.metadata.message_type, message.content
        self.last[kind] = content
        if kind.split(".")[0] == "train" and self.first_train is None:
            # A copy: clients in this process may edit what they were sent.
            self.first_train = _copy(message).content
        self.secure |= SECURE_AGGREGATION in content.config_records
        return is_finite(content)

    def _note(self, asked: list[Message], finite: list[bool], replies: list[Message]) -> None:
        kind = asked[0].metadata.message_type
        good = [reply for reply in replies if not reply.has_error()]
        self.batches.append({
            "type": kind,
            "asked": len(asked),
            "finite": all(finite),
            "errors": {r.metadata.src_node_id: str(r.error.reason)[:300]
                       for r in replies if r.has_error()},
            "metrics": {r.metadata.src_node_id: numbers(r.content) for r in good},
            "records": sorted({_shape(r.content) for r in good})[:5],
            "floats": sum(holds_floats(r.content) for r in good),
            "unlike": _unlike([layout_in(r.content) for r in good]),
            "continues": _continue(asked, good),
        })  # fmt: skip

    def facts(self, byzantine: Iterable[int]) -> dict[str, Any]:
        """Sum up, with the metrics of honest nodes only."""
        hostile = set(byzantine)
        errors = [
            {"batch": i, "node": node, "reason": reason, "finite": batch["finite"]}
            for i, batch in enumerate(self.batches)
            for node, reason in batch["errors"].items()
            if node not in hostile
        ]
        trains = [b for b in self.batches if b["type"].split(".")[0] == "train"]
        return {
            "batches": len(self.batches),
            "types": sorted({b["type"] for b in self.batches}),
            "train_batches": len(trains),
            "train_sizes": sorted({b["asked"] for b in trains}),
            "alone": sum(b["asked"] == 1 for b in trains),
            "train_types": sorted({b["type"] for b in trains}),
            "unlike": next((b["unlike"] for b in trains if b["unlike"]), ""),
            "continues": any(b["continues"] for b in trains),
            "records": sorted({text for b in trains for text in b["records"]})[:8],
            "floats": sum(b["floats"] for b in trains),
            "non_finite": any(not b["finite"] for b in self.batches),
            "client_errors": errors[:ERRORS],
            "client_error_count": len(errors),
            "secure": self.secure,
            "evaluations": [
                averaged({n: m for n, m in metrics.items() if n not in hostile})
                for metrics in self._evaluations()
            ],
        }

    def _evaluations(self) -> list[dict[int, dict[str, float]]]:
        """Return each round's evaluations, by node: the older API sends them one by one."""
        rounds: list[dict[int, dict[str, float]]] = []
        before = ""
        for batch in self.batches:
            kind = batch["type"].split(".")[0]
            if kind == "evaluate":
                if before == "evaluate" and not rounds[-1].keys() & batch["metrics"].keys():
                    rounds[-1] |= batch["metrics"]
                else:
                    rounds.append(dict(batch["metrics"]))
            before = kind
        return rounds


def holds_floats(content: RecordDict) -> bool:
    """Whether a reply holds a floating array."""
    return any(values.dtype.kind == "f" for values in arrays_of(content))


def is_finite(content: RecordDict) -> bool:
    """Whether all floating arrays of a message are finite."""
    return all(np.isfinite(v).all() for v in arrays_of(content) if v.dtype.kind == "f")


def arrays_of(content: RecordDict) -> list[np.ndarray]:
    """Read the arrays that can be read."""
    found = []
    for record in content.array_records.values():
        for array in record.values():
            try:
                found.append(array_values(array))
            except Refused:
                continue
    return found


def layout_in(content: RecordDict) -> Layout:
    """Return keys and shapes of the arrays that can be read."""
    return layout_of(readable_arrays(content), {})


def _unlike(layouts: list[Layout]) -> str:
    """Say in what two replies to one batch differ; empty where all are alike."""
    first = layouts[0] if layouts else None
    other = next((one for one in layouts if first and one.slots != first.slots), None)
    return difference(first, other) if first and other else ""


def _continue(asked: list[Message], replies: list[Message]) -> bool:
    """Whether some reply holds an array of the shape of one that was sent."""
    sent = {shape for m in asked for _, shape in layout_in(m.content).slots.values()}
    came = {shape for r in replies for _, shape in layout_in(r.content).slots.values()}
    return bool(sent & came)


def _shape(content: RecordDict) -> str:
    """Describe a reply's records in a line."""
    parts = []
    for name, held in content.items():
        kinds = ""
        if name in content.array_records:
            kinds = " ".join(sorted({str(v.dtype) for v in arrays_of(RecordDict({name: held}))}))
        parts.append(f"{type(held).__name__} {name!r} {kinds}".strip())
    return ", ".join(parts)


def numbers(content: RecordDict) -> dict[str, float]:
    """Return every scalar that a reply reports, of metric and configuration records."""
    told: dict[str, float] = {}
    records: list[Mapping[str, Any]] = [
        *content.metric_records.values(),
        *content.config_records.values(),
    ]
    for record in records:
        for key, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                told[key] = float(value)
    return told


def averaged(metrics: dict[int, dict[str, float]]) -> dict[str, float]:
    """Average what nodes report, weighted by their numbers of examples where all report one."""
    if not metrics:
        return {}
    keys = set.intersection(*(set(told) for told in metrics.values()))
    counts = sorted(key for key in keys if "example" in key or "sample" in key)
    weights = [max(0.0, told[counts[0]]) if counts else 1.0 for told in metrics.values()]
    # Exact, so that the order in which nodes answered does not show in the last bits.
    total = math.fsum(weights)
    if not math.isfinite(total) or total <= 0:
        weights, total = [1.0] * len(metrics), float(len(metrics))
    return {
        key: math.fsum(w * told[key] for w, told in zip(weights, metrics.values(), strict=True))
        / total
        for key in keys - set(counts)
    }


def ask(grid: Grid, content: RecordDict, nodes: list[int]) -> dict[str, float]:
    """Ask nodes to evaluate; empty where one of them cannot."""
    replies = grid.send_and_receive([Message(content, node, "evaluate") for node in nodes])
    if len(list(replies)) < len(nodes) or any(reply.has_error() for reply in replies):
        return {}
    return averaged({r.metadata.src_node_id: numbers(r.content) for r in replies})
