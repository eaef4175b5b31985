"""A grid without processes: messages reach the client app's handlers by reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedrobust.failures import PluginError
from fedrobust.flower._compat import TaskIdentity, set_message_id
from fedrobust.flower.update_matrix import UpdateMatrix
from fedrobust.flower.wrapping import WrappedGrid, innermost

Together = Callable[
    [Sequence[Message], Sequence[Context], UpdateMatrix | None], Iterable[Message | None]
]
RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
RUNS = count(1)  # so that what a process keeps for one run is never taken for another's


class InProcessGrid(Grid):
    """Run every client in this process, one after the other.

    Parameters
    ----------
    app
        The client app, or any function ``(message, context) -> message or None``; None is a
        client that never answers.
    clients
        How many nodes there are; node i + 1 has ``partition-id`` i.
    run_config
        What every client reads as ``context.run_config``; None: nothing.
    together
        Answers "train" messages of several clients at once: (messages, contexts, matrix) -> one
        reply or None a message, in order, each made when it is asked for. Client i may write its
        update into row i of the matrix and answer with that row.

    Attributes
    ----------
    contexts
        Node id -> its context. Contexts live as long as the grid.
    updates
        The matrix whose rows the clients write: the grid's own, so that two runs share none.

    Notes
    -----
    Tensors travel by reference: nobody may write into one that it was handed.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message | None],
        *,
        clients: int,
        run_config: dict[str, Any] | None = None,
        together: Together | None = None,
    ) -> None:
        identify()
        self._together = together
        self._app = app
        config, run = run_config or {}, next(RUNS)
        self.contexts = {i + 1: new_context(i, clients, config, run) for i in range(clients)}
        self.updates = UpdateMatrix(clients)
        self._waiting: dict[str, Message] = {}
        self._ids = count(1)

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no SuperLink that could describe the run."""
        raise NotImplementedError("an in-process grid belongs to no SuperLink run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message (kept for Flower's older strategies)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return 1..clients."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Accept messages; they are handled when their replies are pulled."""
        stamped = [stamp(message, f"in-process-{next(self._ids)}") for message in messages]
        self._waiting |= {message.metadata.message_id: message for message in stamped}
        return [message.metadata.message_id for message in stamped]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the clients whose messages are asked for and return their replies."""
        asked = [self._waiting.pop(i) for i in message_ids if i in self._waiting]
        return [reply for reply in self._replies(asked) if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run every client; those not reached before the timeout have not answered."""
        end = time.monotonic() + timeout if timeout is not None else None
        asked = [self._waiting.pop(i) for i in self.push_messages(messages)]
        answers, replies = self._replies(asked), []
        for _ in asked:
            if end is not None and time.monotonic() > end:
                break
            # One at a time: who comes after the deadline has not computed anything.
            if (reply := next(answers)) is not None:
                replies.append(reply)
        return replies

    def _replies(self, asked: list[Message]) -> Iterator[Message | None]:
        """Answer messages in order, one when it is asked for; None is silence."""
        known = all(m.metadata.dst_node_id in self.contexts for m in asked)
        trains = all(m.metadata.message_type == "train" for m in asked)
        if self._together is not None and asked and known and trains:
            contexts = [self.contexts[m.metadata.dst_node_id] for m in asked]
            yield from self._together(asked, contexts, self.updates)
        else:
            yield from (self._deliver(message) for message in asked)

    def _deliver(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        if node not in self.contexts:
            return Message(Error(code=0, reason=f"no node {node}"), reply_to=message)
        return answer(self._app, message, self.contexts[node])


def matrix_of(grid: Grid) -> UpdateMatrix | None:
    """Return the matrix that the clients of a grid write their updates into.

    None where they live in processes that share no memory, and their updates arrive as bytes.
    """
    while not isinstance(found := getattr(grid, "updates", None), UpdateMatrix):
        if not isinstance(grid, WrappedGrid):
            return None
        grid = grid.inner
    return found


def in_this_process(grid: Grid) -> bool:
    """Whether what is sent to the clients of a grid travels by reference."""
    return isinstance(innermost(grid), InProcessGrid)


def answer(
    app: Callable[[Message, Context], Message | None], message: Message, context: Context
) -> Message | None:
    """Call a client; what it raises becomes its error reply.

    A ``PluginError`` does not: an attacker whose own code is wrong is no attacker that failed.
    """
    try:
        return app(message, context)
    except PluginError:
        raise
    except Exception as error:  # the client's own failure, whatever it is, is its reply
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(code=RAISED, reason=reason), reply_to=message)


def new_context(
    client: int, clients: int, run_config: dict[str, Any], run_id: int | None = None
) -> Context:
    """Return the fresh context of one simulated node; None takes this process's own run."""
    return Context(
        run_id=TaskIdentity.run_id if run_id is None else run_id,
        node_id=client + 1,
        node_config={"partition-id": client, "num-partitions": clients},
        state=RecordDict(),
        run_config=run_config,
    )


def stamp(message: Message, message_id: str) -> Message:
    """Give a message its id, as Flower's own grids do."""
    set_message_id(message, message_id)
    return message


def identify() -> None:
    """Give this process the identity that Flower's Message constructor reads, if it has none."""
    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, 1)
