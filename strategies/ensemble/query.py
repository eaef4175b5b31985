"""Distributed inference: one query over the grid, the members' answers, and who did not answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust.ensemble import one_hot
from fedrobust.flower import array_of
from fedrobust.flower.ensemble_replies import screen_answer
from fedrobust.flower.replies import collect


@dataclass
class Heard:
    """What came back from a query.

    Attributes
    ----------
    answers
        (members, B, ...), one row a member that answered at least one of the query's messages, in
        the order of ``clients``; NaN where it did not.
    clients
        Whose rows these are.
    missing
        Who did not answer a message, or answered badly, and why; at most one entry a member.
    """

    answers: Tensor
    clients: list[int]
    missing: list[dict[str, Any]] = field(default_factory=list)

    def among(self, members: int) -> Tensor:
        """Return the answers with a row of NaN for each of the others, (members, B, ...).

        A vote then counts whoever is silent among a rule's f, as it does who answers NaN: else f
        silent members could stop a rule that needs more than are left.
        """
        absent = self.answers.new_full(
            (members - len(self.answers), *self.answers.shape[1:]), torch.nan
        )
        return torch.cat([self.answers, absent])


def ask(
    grid: Grid,
    clients: Mapping[int, int],
    images: Tensor,
    *,
    name: str,
    what: str = "probabilities",
    classes: int = 10,
    batch_size: int = 500,
    deadline: float = 600.0,
    extra: Mapping[int, Mapping[str, Tensor]] | None = None,
) -> Heard:
    """Ask every member about images and return what can be counted.

    Parameters
    ----------
    clients
        Node id -> member, from the roll call.
    images
        Float images (B, C, H, W) in [0, 1].
    name
        Of this query; an answer that carries another one is refused.
    what
        "probabilities", "logits" or "labels" for a vote; "gradient" and "curvature" for probes,
        which members answer with (B, C, H, W) and (B,).
    classes
        Width of a row; labels come back as one-hot rows.
    batch_size
        Images a message.
    deadline
        Seconds for each message's replies.
    extra
        Arrays by member that travel with its images, cut as they are.

    Notes
    -----
    A member that is Byzantine, silent, late or broken costs its own vote on those images and
    nothing else; it is named in ``missing``.
    """
    members = sorted(clients.values())
    shape = {"labels": (), "curvature": (), "gradient": tuple(images.shape[1:])}.get(
        what, (classes,)
    )
    found = torch.full((len(members), len(images), *shape), torch.nan)
    heard = dict.fromkeys(members, False)
    faults: dict[int, dict[str, Any]] = {}
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        # A name for each batch: an answer to another batch has the same shape and would pass.
        query = f"{name}/{start}"
        sent = _messages(clients, images, slice(start, stop), query, what, deadline, extra or {})
        replies = grid.send_and_receive(sent, timeout=deadline)
        read = partial(screen_answer, query=query, shape=(stop - start, *shape))
        collected = collect(sent, replies, read)
        for entry in collected.rejected(clients):
            # The first reason only: a dead member would have one for each batch.
            faults.setdefault(entry["client"], entry)
        for node, answer in collected.accepted.items():
            member = clients[node]
            found[members.index(member), start:stop], heard[member] = answer, True
    there = [k for k, member in enumerate(members) if heard[member]]
    rows = found[there]
    if what == "labels" and there:
        # A cast of NaN to a whole number is undefined; -1 is no class and becomes NaN again.
        rows = one_hot(rows.nan_to_num(-1).long(), classes=classes)
    return Heard(rows, [members[k] for k in there], [faults[m] for m in sorted(faults)])


def _messages(
    clients: Mapping[int, int],
    images: Tensor,
    part: slice,
    query: str,
    what: str,
    deadline: float,
    extra: Mapping[int, Mapping[str, Tensor]],
) -> list[Message]:
    words = ConfigRecord({"name": query, "what": what})
    common = RecordDict({"arrays": array_of(images=images[part]), "query": words})

    def content(member: int) -> RecordDict:
        if member not in extra:
            return common
        own = {key: value[part] for key, value in extra[member].items()}
        return RecordDict({"arrays": array_of(images=images[part], **own), "query": words})

    return [
        Message(content(member), node, "query.predict", group_id=query, ttl=deadline)
        for node, member in clients.items()
    ]
