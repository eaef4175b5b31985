"""Evaluation replies made alike: medians of what the clients report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message, MetricRecord, RecordDict

from fedrobust.flower.model_replies import Sent
from fedrobust.flower.reply_metrics import own_configs, shared_metrics


@dataclass(frozen=True)
class Alike:
    """Replies with the same metrics, and who lost the vote (node -> why)."""

    replies: list[Message]
    refused: dict[int, str]


def alike(sent: Sent, replies: Iterable[Message]) -> Alike:
    """Give every readable reply the medians of what more than half of them report.

    One reply with a key too many would end a run of Flower's stock strategies, and one claim of
    1e12 examples would decide the average.
    """
    kept, refused = sent.kept(replies)
    contents: dict[int, RecordDict] = {}
    for node in sorted(kept):
        reply = kept[node]
        if reply.has_error():
            refused[node] = f"error reply: {str(reply.error.reason)[:200]}"
        elif not reply.has_content() or not reply.content.metric_records:
            refused[node] = "it reports no metrics"
        else:
            contents[node] = reply.content
    metrics = shared_metrics(list(contents.values()))
    configs = own_configs(list(contents.values()))
    made = []
    for node, config in zip(contents, configs, strict=True):
        # A record for each reply, as from a network: what one reader changes is no other's.
        content = RecordDict({name: MetricRecord(dict(held)) for name, held in metrics.items()})
        for name, record in config.items():
            content[name] = record
        made.append(Message(content, reply_to=sent.messages[node]))
    return Alike(made, refused)
