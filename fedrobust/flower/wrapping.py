"""What every grid around another grid has in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid


class WrappedGrid(Grid):
    """A grid around another: all but ``send_and_receive`` is handed on.

    A base class of our own, against the house rule: Flower's abstract ``Grid`` asks each wrapper
    for the same six methods, and two copies of them would drift apart.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner
        self._done: dict[str, Message] = {}

    @property
    def inner(self) -> Grid:
        """The grid that carries the messages."""
        return self._inner

    def set_run(self, run: Any) -> None:
        """Hand the run to the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """The inner grid's run."""
        return self._inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Build a message through the inner grid."""
        return self._inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> list[int]:
        """Return the inner grid's nodes."""
        return list(self._inner.get_node_ids())

    def get_nodes(self) -> list[Any]:
        """Return what the inner grid knows of its nodes; nothing where it keeps no register."""
        known = getattr(self._inner, "get_nodes", None)
        return list(known()) if known is not None else []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Carry the messages at once; the replies wait to be pulled."""
        listed = list(messages)
        replies = self.send_and_receive(listed)
        self._done |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [message.metadata.message_id for message in listed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come for these messages."""
        return [self._done.pop(i) for i in message_ids if i in self._done]


def innermost(grid: Grid) -> Grid:
    """Return the grid that carries the messages in the end, without its wrappers."""
    while isinstance(grid, WrappedGrid):
        grid = grid.inner
    return grid
