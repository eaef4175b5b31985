"""Which worker is asked for which clients: the longest first, and whoever is free takes more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

PARTS = 2  # of what a worker has before it, one is asked for at a time: few messages at first
LEAST = 16  # a message is no smaller than a worker's fair share through this: few small ones


class Placement:
    """What each client cost when it was last asked, and which worker it was.

    A client stays with its worker as long as all are equally busy: what a worker has computed for
    it may be at hand there. Its numbers never depend on who computes them.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._worker: dict[int, int] = {}

    def seconds(self, client: int) -> float:
        """Return what a client took last; 1 for one that was never asked."""
        return self._seconds.get(client, 1.0)

    def learn(self, worker: int, clients: Sequence[int], seconds: Sequence[float]) -> None:
        """Remember who asked some clients, and how long each took."""
        self._worker.update(dict.fromkeys(clients, worker))
        self._seconds.update(zip(clients, seconds, strict=True))

    def queues(
        self,
        clients: Iterable[int],
        workers: Sequence[int],
        *,
        most: int,
        content: Callable[[int], Hashable] = lambda client: 0,
    ) -> Queues:
        """Return the clients of one exchange, laid before the workers.

        Parameters
        ----------
        most
            Clients that one message may be to.
        content
            Client -> what it is sent: one message has one content.
        """
        queues: dict[int, list[int]] = {worker: [] for worker in workers}
        for place, client in enumerate(sorted(clients)):
            usual = self._worker.get(client, -1)
            queues[usual if usual in queues else workers[place % len(workers)]].append(client)
        return Queues(self, queues, most=most, content=content)


class Queues:
    """The clients that are still to be asked in one exchange, by worker."""

    def __init__(
        self,
        placement: Placement,
        queues: dict[int, list[int]],
        *,
        most: int,
        content: Callable[[int], Hashable],
    ) -> None:
        self._placement = placement
        self._most = most
        self._content = content
        total = sum(self._load(clients) for clients in queues.values())
        self._least = total / (LEAST * len(queues))
        self._queues = {w: deque(self._longest_first(c)) for w, c in queues.items()}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def take(self, worker: int) -> list[int]:
        """Return the clients that a free worker asks next: its own, or else the fullest one's.

        There must be some left.
        """
        own = self._queues.setdefault(worker, deque())
        queue = own or max(self._queues.values(), key=self._load)
        share = max(self._load(queue) / PARTS, self._least)
        taken = [queue.popleft()]
        while queue and len(taken) < self._most and self._load(taken) < share:
            if self._content(queue[0]) != self._content(taken[0]):
                break
            taken.append(queue.popleft())
        return taken

    def put_back(self, clients: Iterable[int], *, instead_of: int) -> None:
        """Lay clients whose worker died before another one, if there is one."""
        others = [worker for worker in self._queues if worker != instead_of] or [instead_of]
        orphans = [*clients, *self._queues[instead_of]]
        self._queues[instead_of].clear()
        least = min(others, key=lambda worker: self._load(self._queues[worker]))
        self._queues[least] = deque(self._longest_first([*orphans, *self._queues[least]]))

    def _load(self, clients: Iterable[int]) -> float:
        return sum(map(self._placement.seconds, clients))

    def _longest_first(self, clients: Iterable[int]) -> list[int]:
        told: dict[Hashable, int] = {}  # contents in the order of their longest clients
        ranked = sorted(clients, key=lambda client: (-self._placement.seconds(client), client))
        for client in ranked:
            told.setdefault(self._content(client), len(told))
        return sorted(ranked, key=lambda client: told[self._content(client)])  # stable
