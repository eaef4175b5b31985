"""The workers of a run on a Ray cluster: started, asked, started again when they die."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from experiments.cluster.worker import Here
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.spec import InputError
from fedrobust.text import printable
from fedrobust.version import __version__

LOG = logging.getLogger("fedrobust.cluster")
START_LIMIT = 120.0  # seconds for a worker's process, its imports and its data, on a free core
DEATHS = 2  # a worker that died so often is not used again


class ClusterError(InputError):
    """Too few workers are left to go on."""

    exit_code = 1


@dataclass(eq=False)
class Slot:
    """A place for a worker.

    Attributes
    ----------
    number
        From 0 on.
    actor
        Ray's handle of the worker that is there now.
    task
        What it was asked: a reference, or a generator of them.
    tag
        The asker's own name of it; None while the worker starts.
    deaths
        How often the worker here has died.
    """

    number: int
    actor: Any
    task: Any = None
    tag: Any = None
    deaths: int = 0


@dataclass(frozen=True)
class Done:
    """What a worker has come to.

    Attributes
    ----------
    slot
        Its number.
    tag
        What it was asked.
    value
        Its answer; of a generator the next one.
    died
        Why the worker is no more, and there is no answer; empty where there is one.
    failed
        What the worker's own code raised instead of an answer.
    last
        Whether the slot is free: False for an answer of a generator, which may have more.
    """

    slot: int
    tag: Any
    value: Any = None
    died: str = ""
    failed: Exception | None = None
    last: bool = True


class Pool:
    """Some workers of one plan.

    Parameters
    ----------
    ray
        The module, connected.
    kind
        Their class; ``set_up(plan)`` makes one ready, and says where it is.
    plan
        What each is set up for.
    workers
        How many.
    gpus
        Of each; 0: one core each.
    """

    def __init__(self, ray: Any, kind: type, plan: Any, *, workers: int, gpus: float = 0.0) -> None:
        self._ray = ray
        own = {"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": 1}
        # Not Ray's restarts: a worker that begins again must be set up again, and be counted.
        self._made = ray.remote(max_restarts=0, max_task_retries=0, **own)(kind)
        self._plan = ray.put(plan)
        self._slots = [Slot(number, None) for number in range(workers)]
        self._machines: dict[int, str] = {}
        self._reason = ""
        for slot in self._slots:
            self._start(slot)

    def whereabouts(self) -> str:
        """Say on which machines the workers are: ``4 workers: alpha 2, beta 2``."""
        counts = Counter(self._machines.values())
        where = ", ".join(f"{machine} {count}" for machine, count in sorted(counts.items()))
        return f"{counts.total()} workers: {where}"

    def numbers(self) -> list[int]:
        """Return the slots that are not out."""
        return [slot.number for slot in self._slots if slot.deaths < DEATHS]

    def free(self) -> list[int]:
        """Return the slots whose worker waits for work."""
        return [s.number for s in self._slots if s.deaths < DEATHS and s.task is None]

    def ask(self, number: int, tag: Any, method: str, *arguments: Any, **options: Any) -> None:
        """Ask the free worker of a slot; what it answers comes out of ``wait``."""
        slot = self._slots[number]
        call = getattr(slot.actor, method)
        slot.tag, slot.task = tag, call.options(**options).remote(*arguments)

    def actor(self, number: int) -> Any:
        """Return the handle of the worker in a slot."""
        return self._slots[number].actor

    def started(self) -> None:
        """Wait until every worker is set up, or has died for good."""
        end = time.monotonic() + start_limit()
        while any(slot.task is not None for slot in self._slots if slot.deaths < DEATHS):
            if (left := end - time.monotonic()) <= 0:
                raise ClusterError(self._late())
            self.wait(left)

    def wait(self, timeout: float | None = None) -> Done | None:
        """Return the next thing that a worker has come to; None if nothing came in time.

        A worker that died is replaced by a new one in the same slot, once.

        Raises
        ------
        ClusterError
            If fewer than half of the workers are left.
        Exception
            What kept a worker from being set up.
        """
        tasks = {s.task: s for s in self._slots if s.task is not None}
        if not tasks:
            return None
        starting = all(slot.tag is None for slot in tasks.values())
        limit = start_limit() if starting and timeout is None else timeout
        ready, _ = self._ray.wait(list(tasks), num_returns=1, timeout=limit, fetch_local=False)
        if not ready and starting and timeout is None:
            raise ClusterError(self._late())
        done = self._took(tasks[ready[0]]) if ready else None
        if done is not None and done.tag is None and done.failed is not None:
            raise done.failed
        return done

    def _took(self, slot: Slot) -> Done:
        """Take what the worker in a slot has ready."""
        tag, generates = slot.tag, hasattr(slot.task, "__next__")
        try:
            value = self._ray.get(next(slot.task) if generates else slot.task)
        except StopIteration:
            slot.task = slot.tag = None
            return Done(slot.number, tag)
        except self._ray.exceptions.RayTaskError as error:
            slot.task = slot.tag = None
            return Done(slot.number, tag, failed=error.cause)
        except self._ray.exceptions.RayError as error:
            self._died(slot, _reason(error))
            return Done(slot.number, tag, died=self._reason)
        if isinstance(value, Here):
            self._machines[slot.number] = _same_version(value).machine
        if not generates:
            slot.task = slot.tag = None
        return Done(slot.number, tag, value, last=not generates)

    def _start(self, slot: Slot) -> None:
        slot.actor = self._made.remote()
        slot.tag, slot.task = None, slot.actor.set_up.remote(self._plan)

    def _died(self, slot: Slot, reason: str) -> None:
        slot.deaths += 1
        slot.task = slot.tag = None
        self._reason = reason
        self._machines.pop(slot.number, None)
        self._end(slot)  # whatever Ray lost of it: half a worker answers nobody
        if slot.deaths < DEATHS:
            self._start(slot)
        left, all_ = len(self.numbers()), len(self._slots)
        if 2 * left < all_:
            raise ClusterError(f"{left} of {all_} workers are left, the last died: {reason}")

    def _late(self) -> str:
        waiting = sum(slot.task is not None for slot in self._slots)
        return (
            f"{waiting} of {len(self._slots)} workers have not started in {start_limit():.0f} s:"
            " see `ray status` for what the cluster has free"
        )

    def _end(self, slot: Slot) -> None:
        self._ray.kill(slot.actor)

    def close(self) -> None:
        """End every worker."""
        for slot in self._slots:
            self._end(slot)


@contextmanager
def pooled(
    ray: Any, kind: type, plan: Any, *, workers: int = 0, most: int, cuda: bool
) -> Iterator[Pool]:
    """Hold workers inside the block.

    Parameters
    ----------
    kind, plan
        What each is, and what it is set up for.
    workers
        How many; 0: one a core, or one a GPU, of the whole cluster.
    most
        More could have nothing to do.
    cuda
        Share the cluster's GPUs out among them.

    Raises
    ------
    ConfigError
        If the cluster has no GPU, or another version of ours is on one of its machines.
    ClusterError
        If too few workers start.
    """
    has = ray.cluster_resources()
    there = int(has.get("GPU" if cuda else "CPU", 0))
    if not there:
        lacking = "GPU" if cuda else "core"
        raise ConfigError([f"the Ray cluster has no {lacking}: see `ray status`"])
    count = min(workers or there, most) if cuda else min(workers or there, there, most)
    pool = Pool(ray, kind, plan, workers=count, gpus=_share(there, count) if cuda else 0.0)
    try:
        pool.started()
        LOG.info("Ray: %s", pool.whereabouts())
        yield pool
    finally:
        pool.close()


def start_limit() -> float:
    """Return the seconds that workers may take to start: more where work waits for the cores."""
    return START_LIMIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _share(gpus: int, workers: int) -> float:
    """Return each worker's share of the GPUs: whole ones, or equal parts of one."""
    return 1.0 if workers <= gpus else 1.0 / math.ceil(workers / gpus)


def _same_version(here: Here) -> Here:
    if (here.version, here.protocol) != (__version__, PROTOCOL):
        raise ConfigError(
            [f"{here.machine} has fedrobust {here.version} (protocol {here.protocol}), this"
             f" machine {__version__} (protocol {PROTOCOL}): install one version everywhere"]
        )  # fmt: skip
    return here


def _reason(error: Exception) -> str:
    """Say in a line why Ray lost a worker."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable("; ".join(told[:2]) or type(error).__name__, limit=300)
