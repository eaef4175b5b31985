"""The attackers' side channel, for simulation: what colluders see before they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust.flower.in_process import RAISED, in_this_process, matrix_of, stamp
from fedrobust.flower.serialization import (
    TensorArray,
    array_of,
    read_setting,
    read_tensor,
    tensor_of,
)
from fedrobust.flower.update_matrix import UpdateMatrix
from fedrobust.flower.wrapping import WrappedGrid

ADVERSARY = "fedrobust.attacks.threat_model"
VIEW = "fedrobust.view"
ROOM = "fedrobust.room"  # the view with a free row for each colluder behind it, to be written
NOTES = "fedrobust.notes"
CRAFTED = "crafted"


class AdversaryGrid(WrappedGrid):
    """Carry what the colluders know to their leader, and what it crafts to each of them.

    Parameters
    ----------
    inner
        Any grid.
    clients
        Node id -> client: the order in which the view's rows stand.
    members
        Round -> the Byzantine clients of that round.
    knowledge
        ``"colluding"``: the colluders first train honestly, and the leader sees their updates.
        ``"omniscient"``: the honest nodes answer first, and the leader sees all their updates.
    read, write
        How an update is read from an array and written into one:
        ``write(update, server_round, client)``. None: as it is; where the clients live in this
        process, into the colluder's own row of their matrix.

    Notes
    -----
    The crafting itself runs in the malicious client app on the leader's node: the first Byzantine
    client, asked in this round or not, so that what the attack remembers stays in one place. One
    crafted row goes out under each colluder's own node id. Messages other than "train" pass
    untouched. A harness: on real machines colluders would need a channel of their own.
    """

    def __init__(
        self,
        inner: Grid,
        *,
        clients: Mapping[int, int],
        members: Callable[[int], Iterable[int]],
        knowledge: str,
        read: Callable[[Array], Tensor] = tensor_of,
        write: Callable[..., Array] | None = None,
    ) -> None:
        super().__init__(inner)
        self._read = read
        self._matrix = matrix_of(inner)
        self._by_reference = in_this_process(inner)
        self._write = write or partial(_as_row, self._matrix)
        self._clients = clients
        self._members = members
        self._knowledge = knowledge
        self._nodes = {client: node for node, client in clients.items()}
        self._notes: dict[int, dict[str, Any]] = {}
        self._ids = count(1)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Let the honest answer, then the colluders with what they are allowed to know."""
        honest, colluders = self._split(list(messages))
        replies = list(self._inner.send_and_receive(honest, timeout=timeout)) if honest else []
        if not colluders:
            return replies
        view = replies if self._knowledge == "omniscient" else self._rehearse(colluders, timeout)
        rows = self._stack(view)
        crafted = self._ask_leader(colluders, rows, timeout) if rows is not None else None
        return replies + self._answers(colluders, crafted)

    def notes(self, server_round: int) -> dict[str, Any]:
        """Return what the attack says of its choice in a round, for the row: ``search``, if any."""
        found = self._notes.pop(server_round, {})
        return {"search": found} if found else {}

    def _split(self, messages: list[Message]) -> tuple[list[Message], list[Message]]:
        members = cache(lambda server_round: frozenset(self._members(server_round)))

        def colludes(message: Message) -> bool:
            # An app may have several trainings: "train.warmup" is one too.
            if message.metadata.message_type.split(".")[0] != "train":
                return False
            malicious = members(int(read_setting(message.content, "config", "round")))
            return self._clients.get(message.metadata.dst_node_id, -1) in malicious

        return [m for m in messages if not colludes(m)], [m for m in messages if colludes(m)]

    def _rehearse(self, colluders: list[Message], timeout: float | None) -> list[Message]:
        """Let the colluders train honestly, for their own eyes."""
        content = RecordDict(dict(colluders[0].content.items()))
        content[ADVERSARY] = ConfigRecord({"task": "rehearse"})
        asked = [_copy(message, content) for message in colluders]
        return list(self._inner.send_and_receive(asked, timeout=timeout))

    def _ask_leader(
        self, colluders: list[Message], rows: Tensor, timeout: float | None
    ) -> Message | None:
        leader = min(colluders, key=self._client)
        content = RecordDict(dict(leader.content.items()))
        content[ADVERSARY] = ConfigRecord({"task": "craft", "colluders": len(colluders)})
        content[VIEW] = array_of(view=rows)
        room = None
        if self._matrix is not None and self._by_reference:  # else who crafts would write a copy
            room = self._matrix.room(rows, len(colluders))
        if room is not None:
            content[ROOM] = array_of(room=room)
        server_round = int(read_setting(leader.content, "config", "round"))
        first = self._nodes.get(min(self._members(server_round)), leader.metadata.dst_node_id)
        asked = [_copy(leader, content, to=first)]
        crafted = next(iter(self._inner.send_and_receive(asked, timeout=timeout)), None)
        if crafted is not None and crafted.has_content():
            self._notes[server_round] = dict(crafted.content.get(NOTES) or {})
        return crafted

    def _answers(self, colluders: list[Message], crafted: Message | None) -> list[Message]:
        """Send one row under each colluder's name; an attack that failed is its error reply."""
        for message in colluders:
            # Others went out in the place of these: without an id nobody could answer, or be
            # missed.
            stamp(message, f"colluder-{next(self._ids)}")
        if crafted is None:
            return []
        if crafted.has_error():
            return [Message(crafted.error, reply_to=message) for message in colluders]
        rows = self._apart(read_tensor(crafted.content, "arrays", CRAFTED))
        ranked = sorted(colluders, key=self._client)
        return [
            self._reply(row, message, crafted) for row, message in zip(rows, ranked, strict=True)
        ]

    def _reply(self, row: Tensor, message: Message, crafted: Message) -> Message:
        """Send one colluder's row as updates travel; what cannot be written is an error reply."""
        record = ArrayRecord()
        server_round = int(read_setting(message.content, "config", "round"))
        try:
            record["update"] = self._write(row, server_round, self._client(message))
        except ValueError as error:
            return Message(Error(code=RAISED, reason=str(error)), reply_to=message)
        arrays = crafted.content["arrays"]
        if isinstance(arrays, ArrayRecord) and "statistics" in arrays:
            record["statistics"] = arrays["statistics"]
        content = RecordDict({"arrays": record, "metrics": crafted.content["metrics"]})
        return Message(content, reply_to=message)

    def _apart(self, crafted: Tensor) -> Tensor:
        """Return crafted rows that no row written before the last of them can change."""
        if self._matrix is None or not self._matrix.holds(crafted):
            return crafted
        return crafted if self._matrix.free(crafted) else crafted.clone()

    def _client(self, message: Message) -> int:
        return self._clients[message.metadata.dst_node_id]

    def _stack(self, replies: list[Message]) -> Tensor | None:
        """Stack the updates in the clients' order; None where there are none.

        A diverged update tells colluders nothing: no attack computes with values that are not
        finite.
        """
        ranked = sorted(
            replies, key=lambda reply: self._clients.get(reply.metadata.src_node_id, -1)
        )
        rows = [row for reply in ranked if (row := _update(reply, self._read)) is not None]
        if not rows:
            return None
        return torch.stack(rows) if self._matrix is None else self._matrix.gather(rows)


def _copy(message: Message, content: RecordDict, *, to: int | None = None) -> Message:
    m = message.metadata
    node = m.dst_node_id if to is None else to
    return Message(content, node, m.message_type, ttl=m.ttl, group_id=m.group_id)


def _update(reply: Message, read: Callable[[Array], Tensor]) -> Tensor | None:
    """Return a reply's update, or None: what colluders cannot read they do without."""
    found = reply.content.get("arrays") if reply.has_content() else None
    try:
        row = read(found["update"]) if isinstance(found, ArrayRecord) else None
        return row if row is not None and bool(torch.isfinite(row).all()) else None
    except (KeyError, ValueError):
        return None


def _as_row(matrix: UpdateMatrix | None, update: Tensor, server_round: int, client: int) -> Array:
    """Return a crafted update as it travels unquantised: the colluder's row, if it has one."""
    row = None if matrix is None else matrix.put(client, update)
    return row or TensorArray(update)
