"""What a strategy is handed after the rule: as many replies as were accepted, all alike."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedrobust.aggregation import Outcome
from fedrobust.flower.model_replies import Key, Layout, ModelReply, Sent, Values
from fedrobust.flower.model_vectors import arrays_of, usual_dtype
from fedrobust.flower.reply_metrics import own_configs, shared_metrics


def handed_replies(
    accepted: list[ModelReply],
    layout: Layout,
    starts: dict[int, dict[Key, np.ndarray]],
    step: Tensor,
    others: Values,
    sent: Sent,
) -> list[Message]:
    """Make as many replies as were accepted, each its node's start plus the aggregate."""
    contents = [reply.content for reply in accepted]
    metrics, configs = shared_metrics(contents), own_configs(contents)
    dtypes = {key: usual_dtype(key, accepted) for key in layout.coordinates}
    arrays: dict[int, dict[Key, Array]] = {}
    replies = []
    for reply, config in zip(accepted, configs, strict=True):
        start = starts[reply.node]
        if id(start) not in arrays:
            arrays[id(start)] = arrays_of(layout, start, step, others, dtypes)
        content = RecordDict()
        for (record, name), array in arrays[id(start)].items():  # records anew: strategies pop
            if record not in content:
                content[record] = ArrayRecord()
            content.array_records[record][name] = array
        for name, held in metrics.items():
            content[name] = MetricRecord(dict(held))
        for name, own in config.items():
            content[name] = own
        replies.append(Message(content, reply_to=sent.messages[reply.node]))
    return replies


def weights_of(accepted: list[ModelReply], outcome: Outcome | None) -> dict[int, float]:
    """Return the rule's weight of each node; NaN where it takes values apart from updates."""
    nodes = [reply.node for reply in accepted]
    if outcome is None or outcome.weights is None:
        return dict.fromkeys(nodes, float("nan"))
    return dict(zip(nodes, outcome.weights.tolist(), strict=True))
