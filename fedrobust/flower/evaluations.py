"""What clients of somebody's own app say of their evaluation, screened like everything else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO

import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import log

from fedrobust.flower.replies import collect
from fedrobust.flower.screening import Rejected
from fedrobust.text import printable

MOST_KEYS = 1000


def evaluation_reply(
    sent: Sequence[Message], replies: Iterable[Message], *, weight: str = "num-examples"
) -> list[Message]:
    """Turn the clients' evaluation replies into the one that a strategy can read.

    Parameters
    ----------
    sent
        Whom the strategy asked.
    weight
        The metric by which the strategy weighs; it becomes 1.

    Returns
    -------
    One reply with the medians of the numbers that more than half of the readable replies report;
    no reply where there is no such number. A reply that cannot be read, a value that is no finite
    number, and a key that few report change nothing: fewer than half of the clients cannot move a
    median beyond the others' range.
    """
    found = collect(sent, replies, _numbers)
    for node, reason in found.refused.items():
        log(INFO, "evaluation of node %s refused: %s", node, reason)
    told = medians([found.accepted[node] for node in sorted(found.accepted)], leave_out=weight)
    if not told:
        return []
    content = RecordDict({"metrics": MetricRecord({**told, weight: 1})})
    answered = {m.metadata.dst_node_id: m for m in sent}
    return [Message(content, reply_to=answered[min(found.accepted)])]


def medians(reports: Sequence[Mapping[str, float]], *, leave_out: str = "") -> dict[str, float]:
    """Return the median of each number that more than half of the reports hold."""
    counts = Counter(key for report in reports for key in report)
    told = {}
    for key in sorted(key for key, count in counts.items() if 2 * count > len(reports)):
        if key != leave_out:
            values = [report[key] for report in reports if key in report]
            told[key] = float(torch.tensor(values, dtype=torch.float64).median())
    return told


def _numbers(reply: Message) -> dict[str, float]:
    """Return the finite numbers of a reply's one metric record."""
    try:
        if reply.has_error():
            raise Rejected(f"error reply: {str(reply.error.reason)[:200]}")
        records = [r for r in reply.content.values() if isinstance(r, MetricRecord)]
        if len(records) != 1 or len(records[0]) > MOST_KEYS:
            raise Rejected(f"{len(records)} metric records of at most {MOST_KEYS} keys, expected 1")
        return {
            key: float(value)
            for key, value in records[0].items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
    except Rejected:
        raise
    except Exception as error:  # a hostile reply may break any accessor: it costs its own vote
        told = f"{type(error).__name__}: {printable(error, limit=120)}"
        raise Rejected(f"unreadable reply ({told})") from error
