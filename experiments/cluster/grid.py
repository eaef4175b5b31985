"""A grid over the workers of a Ray cluster: the clients of a run, wherever there is a free core."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from experiments.cluster.placement import Placement, Queues
from experiments.cluster.pool import Done, Pool
from experiments.cluster.worker import Answer, Job
from fedrobust.failures import PluginError
from fedrobust.flower.cohort_grid import AT_ONCE, unpack
from fedrobust.flower.cohort_host import MISTAKE
from fedrobust.flower.in_process import RUNS, identify, new_context, stamp
from fedrobust.flower.quantized_arrays import payload

STORE = 8  # a message takes at most this part of the cluster's object store


class RayGrid(Grid):
    """Show the strategy ``clients`` nodes 1..clients, served by the workers of a pool.

    Parameters
    ----------
    ray
        The module, connected.
    pool
        Workers that are set up for the run.
    clients
        How many clients the run has.

    Attributes
    ----------
    contexts
        Node id -> its context, as in process: what a client remembers is here, goes out with its
        message and comes back with its reply. A worker that dies takes nothing along, and a
        checkpoint holds it.

    Notes
    -----
    A dead worker's clients are asked again of another worker in the same exchange: every draw
    follows from seed, round and client, so that the numbers are the same. Workers are trusted to
    keep their clients apart: this grid is for simulation.
    """

    def __init__(self, ray: Any, pool: Pool, *, clients: int) -> None:
        identify()
        self._ray = ray
        self._pool = pool
        self._clients = clients
        run = next(RUNS)
        self.contexts = {i + 1: new_context(i, clients, {}, run) for i in range(clients)}
        self._placement = Placement()
        self._done: dict[str, Message] = {}
        self._ids = count(1)
        store = int(ray.cluster_resources().get("object_store_memory", 8 * AT_ONCE))
        self._at_once = min(AT_ONCE, store // STORE)

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no SuperLink that could describe the run."""
        raise NotImplementedError("a grid of Ray workers belongs to no SuperLink run")

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
        """Carry the messages at once; the replies wait to be pulled."""
        listed = list(messages)
        replies = self.send_and_receive(listed)
        self._done |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [message.metadata.message_id for message in listed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come for these messages."""
        return [self._done.pop(i) for i in message_ids if i in self._done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Ask the clients; those whose worker was not done before the timeout have not answered.

        Raises
        ------
        PluginError
            If an attack's own code failed.
        ClusterError
            If fewer than half of the workers are left.
        """
        end = None if timeout is None else time.monotonic() + timeout
        stamped = [stamp(message, f"ray-{next(self._ids)}") for message in messages]
        known = [m for m in stamped if m.metadata.dst_node_id in self.contexts]
        replies = [_nobody(m) for m in stamped if m.metadata.dst_node_id not in self.contexts]
        for wave in _waves(known):
            replies += Exchange(self, wave, end).replies()
        return replies


class Exchange:
    """Messages on their way, one a client, until each is answered or the time is over."""

    def __init__(self, grid: RayGrid, wave: dict[int, Message], end: float | None) -> None:
        self._grid, self._pool, self._end, self._members = grid, grid._pool, end, wave
        # Once, however many messages it goes out in: each machine fetches it once, too.
        contents = {id(m.content): m.content for m in wave.values()}
        self._contents = {key: grid._ray.put(content) for key, content in contents.items()}
        largest = max(map(payload, contents.values()), default=1)
        self._queues: Queues = grid._placement.queues(
            wave,
            self._pool.numbers(),
            most=max(1, grid._at_once // max(1, largest)),
            content=lambda client: (id(wave[client].content), wave[client].metadata.message_type),
        )
        self._asked: dict[str, list[int]] = {}

    def replies(self) -> list[Message]:
        """Ask until all is answered, or the time is over."""
        found: list[Message] = []
        while self._queues or self._asked:
            for number in self._pool.free():
                if self._queues:
                    self._ask(number)
            left = None if self._end is None else self._end - time.monotonic()
            if left is not None and left <= 0:
                break
            if (done := self._pool.wait(left)) is not None:
                found += self._taken(done)
        return found

    def _ask(self, number: int) -> None:
        clients = self._queues.take(number)
        first = self._members[clients[0]]
        m = first.metadata
        job = Job(
            clients=tuple(clients), of=self._grid._clients, kind=m.message_type,
            group=m.group_id, ttl=m.ttl, id=m.message_id,
            states=self._states(clients),
        )  # fmt: skip
        self._asked[job.id] = clients
        self._pool.ask(number, job.id, "serve", self._contents[id(first.content)], job)

    def _taken(self, done: Done) -> list[Message]:
        """Return the clients' replies; what an exchange that is over asked for is dropped."""
        clients = self._asked.pop(done.tag, None)
        if done.died:
            self._queues.put_back(clients or (), instead_of=done.slot)
        if clients is None or done.died:
            return []
        if done.failed is not None:
            raise done.failed
        answer: Answer = done.value
        self._grid._placement.learn(done.slot, clients, answer.seconds)
        self._keep(answer.states)
        members = [self._members[client] for client in clients]
        return _believed(unpack(answer.content, members))

    def _states(self, clients: Iterable[int]) -> RecordDict:
        """Return what the clients remember, as a host's context holds it."""
        contexts = self._grid.contexts
        return RecordDict(
            {f"{c}/{key}": record for c in clients for key, record in contexts[c + 1].state.items()}
        )

    def _keep(self, states: RecordDict) -> None:
        for name, record in states.items():
            client, _, key = name.partition("/")
            self._grid.contexts[int(client) + 1].state[key] = record


def _waves(messages: list[Message]) -> Iterator[dict[int, Message]]:
    """Split messages so that a client has one in each part: what it remembers comes back first."""
    waves: list[dict[int, Message]] = []
    for message in messages:
        client = message.metadata.dst_node_id - 1
        free = next((wave for wave in waves if client not in wave), None)
        if free is None:
            waves.append(free := {})
        free[client] = message
    yield from waves


def _nobody(message: Message) -> Message:
    node = message.metadata.dst_node_id
    return Message(Error(code=0, reason=f"no node {node}"), reply_to=message)


def _believed(replies: list[Message]) -> list[Message]:
    """Return the replies; an attack whose own code failed is none that was withstood."""
    for reply in replies:
        reason = str(reply.error.reason) if reply.has_error() else ""
        if reason.startswith(MISTAKE):
            raise PluginError(reason.removeprefix(MISTAKE))
    return replies
