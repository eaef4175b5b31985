"""What runs inside a Ray actor and serves some clients of one run.

The clients are served by the app that Flower's hosts run. Nothing here knows Ray: a worker is a
plain object, and can be tried without a cluster.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.client_app import make_app
from clients.modes import Handlers, handlers_for
from clients.node import Host
from fedrobust import plugins
from fedrobust.cores import VARIABLE, pin_from_environment
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower.cohort_host import COHORT
from fedrobust.flower.in_process import Together, identify, stamp
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.spec import InputError
from fedrobust.version import __version__

RUN = 1  # of this worker's contexts: it serves one run at a time


@dataclass(frozen=True)
class Plan:
    """What a worker that serves clients is set up for.

    Attributes
    ----------
    experiment
        The run whose clients it serves.
    host
        Its data and its device, as on every machine of the cluster.
    use
        Files with plug-ins of the user's, at the same place on every machine.
    parts
        Objects of the user's, as ``plugins.write_parts`` wrote them.
    """

    experiment: Experiment
    host: Host
    use: str = ""
    parts: bytes = b""


@dataclass(frozen=True)
class Here:
    """Where a worker is, and what is installed there."""

    machine: str
    version: str = __version__
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Job:
    """One message to some clients of the run.

    Attributes
    ----------
    clients
        Whom it is to.
    of
        How many clients the run has.
    kind, group, ttl, id
        The message's own.
    states
        What these clients remember, under ``client/key``.
    """

    clients: tuple[int, ...]
    of: int
    kind: str
    group: str
    ttl: float
    id: str
    states: RecordDict


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes
    ----------
    content
        The reply of ``serve_cohort``.
    states
        What the clients remember now.
    seconds
        How long each client took.
    """

    content: RecordDict
    states: RecordDict
    seconds: tuple[float, ...]


class Worker:
    """Serves clients of a run, one message at a time."""

    def __init__(self) -> None:
        self._clock: list[float] = []

    def set_up(self, plan: Plan) -> Here:
        """Load the data and build the model of a run, once.

        Raises
        ------
        ConfigError
            If the data, or files of the user's, are not on this machine.
        """
        self._experiment = plan.experiment
        with naming_the_machine():
            here = prepared(plan.use, plan.parts)
            plugins.provide(plan.experiment.to_dict())
            self._own = self._timed(handlers_for(plan.experiment, plan.host))
        self._app = make_app(lambda context: self._own)
        return here

    def process(self) -> int:
        """Return this worker's process: whoever wants to see what becomes of its end needs it."""
        return os.getpid()

    def serve(self, content: RecordDict, job: Job) -> Answer:
        """Ask the clients of a job, in order; each that fails costs its own reply only."""
        asked = RecordDict(dict(content.items()))
        asked[COHORT] = ConfigRecord({"clients": list(job.clients), "of": job.of})
        message = Message(asked, 1, job.kind, ttl=job.ttl, group_id=job.group)
        stamp(message, job.id)
        context = Context(RUN, 1, {}, job.states, {})
        self._clock = [time.perf_counter()]
        reply = self._app(message, context)
        mine = tuple(f"{client}/" for client in job.clients)
        states = RecordDict({k: v for k, v in context.state.items() if k.startswith(mine)})
        return Answer(reply.content, states, self._seconds(len(job.clients)))

    def _seconds(self, clients: int) -> tuple[float, ...]:
        """Return each client's own time, or equal shares where they trained as a stack."""
        marks = [*self._clock, time.perf_counter()]
        alone = self._experiment.training.cohort == "off"
        if alone and len(marks) == clients + 2:
            return tuple(after - before for before, after in pairwise(marks[:-1]))
        return ((marks[-1] - marks[0]) / clients,) * clients

    def _timed(self, own: Handlers) -> Handlers:
        """Return the handlers with a mark on the clock after each client's answer."""
        return replace(own, together=self._marked(own.together))

    def _marked(self, together: Together) -> Together:
        def marked(*arguments: Any) -> Iterator[Message | None]:
            for reply in together(*arguments):
                self._clock.append(time.perf_counter())
                yield reply

        return marked


def prepared(use: str, parts: bytes = b"") -> Here:
    """Make a fresh process ready to compute: one thread, a core of its own, the user's plug-ins."""
    identify()
    torch.set_num_threads(1)
    os.environ.setdefault(VARIABLE, "1")  # Ray gives each of its workers one core
    pin_from_environment()
    with _named(parts):
        plugins.at_hand(use)
    return Here(socket.gethostname())


@contextmanager
def naming_the_machine() -> Iterator[None]:
    """Say where it was that a file, or anything else that a user must put there, was missing."""
    try:
        yield
    except (OSError, InputError) as error:
        raise ConfigError([f"on {socket.gethostname()}: {error}"]) from error


@contextmanager
def _named(parts: bytes) -> Iterator[None]:
    """Lay a user's objects where ``plugins.at_hand`` looks for them: it reads no message."""
    if not parts:
        yield
        return
    with tempfile.NamedTemporaryFile(prefix="fedrobust-parts-") as file:
        file.write(parts)
        file.flush()
        os.environ[plugins.VARIABLE] = file.name
        try:
            yield
        finally:
            del os.environ[plugins.VARIABLE]
