"""A fleet in simulated time: who drops out or comes too late is not heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedrobust.flower.in_process import stamp
from fedrobust.flower.serialization import read_setting
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.simulation.stragglers import Timing


class StragglerGrid(WrappedGrid):
    """Keep training messages from clients whose replies would never be there in time.

    Parameters
    ----------
    inner
        Any grid.
    clients
        Node id -> client.
    timing
        Round -> who is missing in it.

    Notes
    -----
    The work of a client that is not heard is not done: its state (worker momentum) stands still in
    that round, where a real straggler's would move on. A harness, for simulation.
    """

    def __init__(
        self, inner: Grid, *, clients: Mapping[int, int], timing: Callable[[int], Timing]
    ) -> None:
        super().__init__(inner)
        self._clients = clients
        self._ids = count(1)
        # Every message of a round asks, and then its row.
        self._timing = lru_cache(maxsize=4)(timing)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Carry what arrives in time; the others have not answered."""
        heard = []
        for message in messages:
            if self._missing(message):
                stamp(message, f"unheard-{next(self._ids)}")  # its sender is told who is missing
            else:
                heard.append(message)
        return list(self._inner.send_and_receive(heard, timeout=timeout)) if heard else []

    def row(self, round: int) -> dict[str, Any]:
        """Return what a round's row says of it; nothing before the first round."""
        return self._timing(round).row() if round else {}

    def _missing(self, message: Message) -> bool:
        if message.metadata.message_type.split(".")[0] != "train":
            return False
        times = self._timing(int(read_setting(message.content, "config", "round")))
        client = self._clients.get(message.metadata.dst_node_id, -1)
        return client in times.dropped or client in times.late
