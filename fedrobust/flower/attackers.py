"""Byzantine nodes in anybody's app: a grid that replaces their training replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from logging import INFO, WARNING
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from fedrobust import attacks
from fedrobust.flower.crafted_replies import Attack, attack_replies, check_attack
from fedrobust.flower.model_replies import Sent
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.secret import fresh
from fedrobust.seeds import generator
from fedrobust.spec import SpecError, split

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["round", "node", "replaced", "reason"]


class Attackers(WrappedGrid):
    """Replace the training replies of some nodes by what an attack sends.

    The nodes run the app's own code; what they answer is replaced on its way to the server. Put a
    defence outside: ``RobustGrid(Attackers(grid, ...), rule=...)``.

    Parameters
    ----------
    grid
        Any grid: what ``main(grid, context)`` was given.
    attack
        An attack on updates (``{"name": "sign_flip", "scale": 4.0}``, one of
        ``fedrobust.attacks.ATTACKS``), a broken reply (``"silence"``, one of
        ``fedrobust.flower.broken_replies.BROKEN``), or a function
        ``(honest, *, n, f) -> (f, d)``. ``knowledge`` in its spec says whose updates it sees:
        "omniscient" (here the default) or "colluding".
    f
        How many nodes are Byzantine; they are drawn in the first round of training.
    nodes
        Or which ones, by node id.
    seed
        For the draw and for random attacks; None draws one from the system's entropy.

    Raises
    ------
    SpecError
        For an unknown attack, or not exactly one of ``f`` and ``nodes``.
    ValueError
        In the first round, if there are fewer than ``f`` nodes.

    Notes
    -----
    For simulation: on real machines nobody replaces a reply on its way, and the malicious client
    runs ``clients.byzantine``. A round in which nothing was replaced is logged as a warning.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        attack: Attack,
        f: int | None = None,
        nodes: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(grid)
        check_attack(attack)
        if (f is None) == (nodes is None):
            raise SpecError(f"attackers need one of f and nodes, got f={f}, nodes={nodes}")
        # To Python True is the whole number 1.
        if f is not None and (isinstance(f, bool) or not isinstance(f, int) or f < 1):
            raise SpecError(f"attackers need a whole f of at least 1, got {f!r}")
        self._attack, self._knowledge = attack, "omniscient"
        if not callable(attack):
            self._attack, level = attacks.knowledge(attack)
            self._knowledge = level or "omniscient"
        self._f = f
        self.nodes = None if nodes is None else tuple(sorted(nodes))
        self._seed = fresh() if seed is None else seed
        self._rows: list[tuple[int, int, bool, str]] = []
        self._round = 0
        self._lock = Lock()

    @property
    def history(self) -> pd.DataFrame:
        """One row an asked Byzantine node and round: round, node, replaced, reason."""
        import pandas as pd  # half a second to import: only who asks pays

        return pd.DataFrame(self._rows, columns=COLUMNS)

    @property
    def replaced(self) -> int:
        """How many replies were replaced so far."""
        return sum(row[2] for row in self._rows)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Let every node answer, then replace the training replies of the Byzantine ones."""
        asked = list(messages)
        trains = [m for m in asked if m.metadata.message_type.split(".")[0] == "train"]
        if not trains:
            return list(self._inner.send_and_receive(asked, timeout=timeout))
        # Before they leave: clients in this process may change the records that they are sent.
        sent = Sent.of(trains)
        chosen = self._chosen()
        replies = list(self._inner.send_and_receive(asked, timeout=timeout))
        with self._lock:
            return self._replace(sent, replies, [node for node in chosen if node in sent.messages])

    def _chosen(self) -> tuple[int, ...]:
        with self._lock:
            if self.nodes is None:
                known = sorted(self._inner.get_node_ids())
                f = self._f or 0
                if len(known) < f:
                    raise ValueError(f"attackers with f={f} need as many nodes, got {len(known)}")
                order = torch.randperm(len(known), generator=generator(self._seed, "byzantine"))
                self.nodes = tuple(sorted(known[i] for i in order[:f].tolist()))
                log(INFO, "Byzantine nodes: %s", ", ".join(map(str, self.nodes)))
            return self.nodes

    def _replace(self, sent: Sent, replies: list[Message], byzantine: list[int]) -> list[Message]:
        by_id = {m.metadata.message_id: node for node, m in sent.messages.items()}
        own: dict[int, Message] = {}
        for reply in replies:
            node = by_id.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            if node in sent.messages:
                own.setdefault(node, reply)
        settings: dict[str, Any] = {"server_round": self._round, "knowledge": self._knowledge}
        source = generator(self._seed, "attack", round=self._round)
        crafted = attack_replies(
            self._attack, sent, own, byzantine, n=len(sent.messages), generator=source, **settings
        )
        self._round += 1
        for node in byzantine:
            reason = crafted.untouched.get(node, "" if node in crafted.replies else "no reply")
            self._rows.append((self._round, node, node in crafted.replies, reason))
        if byzantine and not crafted.replies:
            why = next(iter(crafted.untouched.values()), "the Byzantine nodes did not answer")
            log(WARNING, "round %s: %s replaced no reply: %s", self._round, self._name(), why)
        taken = {id(own[node]): made for node, made in crafted.replies.items()}
        handed = (taken.get(id(reply), reply) for reply in replies)
        return [reply for reply in handed if reply is not None]

    def _name(self) -> str:
        attack = self._attack
        return type(attack).__name__ if callable(attack) else split(attack)[0]
