"""The private doors of Flower behind which whole apps run: its engine, its older API, its settings.

The others stand in ``_compat``. ``tests/flower/test_compat.py`` holds both files to the versions
that were tried, ``_compat.TRIED``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from typing import Any

from flwr.common.config import flatten_dict, fuse_dicts, get_project_config
from flwr.serverapp import ServerApp

from fedrobust.flower._compat import DoorError, version

__all__ = [
    "DOORS", "check_doors", "engine", "fit_to_record", "fitted", "flatten_dict", "fuse_dicts",
    "get_project_config", "hurry", "older_averages", "replaced_fit_clients", "simulate_app",
]  # fmt: skip

ENGINE, OLDER = "flwr.simulation.run_simulation", "flwr.server.server"
RECORDS, AVERAGES = "flwr.compat.common.recorddict_compat", "flwr.server.strategy.aggregate"
IN_MEMORY = "flwr.superlink.grid.inmemory_grid"
WORKERS = "flwr.simulation.ray_transport.ray_actor"
# Module -> function -> the parameters that it is called with.
DOORS: dict[str, dict[str, tuple[str, ...]]] = {
    ENGINE: {
        "_run_simulation": ("num_supernodes", "exit_event", "client_app_attr", "server_app",
                            "backend_config", "app_dir", "run", "is_app"),
        "generate_rand_int_from_bytes": ("num_bytes",),
    },
    OLDER: {"fit_clients": ("client_instructions", "max_workers", "timeout", "group_id")},
    RECORDS: {
        "fitins_to_recorddict": ("fitins", "keep_input"),
        "recorddict_to_fitres": ("recorddict", "keep_input"),
    },
}  # fmt: skip
IDLE = 0.5  # seconds after which the engine looks whether the run has ended
_patching = Lock()


def check_doors() -> None:
    """Check that every function of ``DOORS`` is there and takes what it is called with.

    Raises
    ------
    DoorError
        Naming the first that does not.
    """
    for module, functions in DOORS.items():
        for name, wanted in functions.items():
            function = getattr(importlib.import_module(module), name, None)
            known = set(inspect.signature(function).parameters) if function else set()
            if missing := [one for one in wanted if one not in known]:
                raise DoorError(f"flwr {version()}: {module}.{name} does not take {missing[0]}")


def engine() -> Any:
    """Return the module of Flower's simulation engine; imports Ray's part of Flower."""
    return importlib.import_module(ENGINE)


def simulate_app(
    server: ServerApp,
    client: str,
    *,
    folder: Path,
    nodes: int,
    run_config: Mapping[str, Any],
) -> None:
    """Run a server against an app's clients in Flower's simulation engine.

    The public ``run_simulation`` gives the clients an empty run configuration, and takes the client
    app by value; here the engine's actors load it themselves, as ``flwr run`` lets them.

    Parameters
    ----------
    client
        The reference of the client app, ``"module:name"``.
    folder
        Where that module is.
    """
    held = engine()
    run_id = held.generate_rand_int_from_bytes(held.RUN_ID_NUM_BYTES)
    run = held.Run.create_empty(run_id=run_id)
    run.primary_task_id = held.generate_rand_int_from_bytes(held.TASK_ID_NUM_BYTES)
    run.federation_id = held.NOOP_FEDERATION_ID
    run.override_config = dict(run_config)
    # Of the whole process: the constructor of every message reads it (Flower 1.42).
    identity = held.TaskIdentity
    identity.task_id, identity.run_id = run.primary_task_id, run_id
    identity.node_id = held.SUPERLINK_NODE_ID
    held._run_simulation(
        num_supernodes=nodes,
        exit_event=held.EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app_attr=client,
        server_app=server,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        app_dir=str(folder),
        run=run,
        is_app=True,
    )


@contextmanager
def replaced_fit_clients(function: Callable[..., Any]) -> Iterator[None]:
    """Let servers of the older API call another ``fit_clients`` inside the block, one at a time."""
    older: Any = importlib.import_module(OLDER)
    with _patching:
        original = older.fit_clients
        older.fit_clients = function
        try:
            yield
        finally:
            older.fit_clients = original


def fit_to_record(instruction: Any) -> Any:
    """Return the records of an older ``FitIns``."""
    # Kept: clients share one FitIns, which the first of them would be given the only copy of.
    return importlib.import_module(RECORDS).fitins_to_recorddict(instruction, keep_input=True)


def fitted(content: Any) -> Any:
    """Return the older ``FitRes`` that records hold."""
    return importlib.import_module(RECORDS).recorddict_to_fitres(content, keep_input=False)


def older_averages() -> Any:
    """Return the module of the older API's averages and rules, for comparisons."""
    return importlib.import_module(AVERAGES)


def hurry(grid: Any, interval: float) -> bool:
    """Let Flower's simulation engine carry messages when they come, and replace workers that died.

    The engine looks for messages every 0.1 s, for replies as often, and puts a worker that died
    back among the living ones.

    Parameters
    ----------
    grid
        The grid that the engine gave to the server app; any other is left as it is.
    interval
        Seconds between two looks for replies.

    Returns
    -------
    Whether the grid was the engine's.
    """
    module = sys.modules.get(IN_MEMORY)
    if module is None or not isinstance(grid, module.InMemoryGrid):
        return False
    grid.pull_interval = interval
    Doorbell(grid)
    _replace_dead_workers()
    return True


class Doorbell:
    """Wake the engine's thread that hands messages out, which else sleeps between two looks.

    It asks for each node's messages in turn: where it asks for the first node's, it is kept until
    there is something to hand out.
    """

    def __init__(self, grid: Any) -> None:
        self._changed = Condition()
        self._waiting = 0
        self._first: int | None = None
        self._push, self._look = grid.push_messages, grid.state.get_message_ins
        grid.push_messages, grid.state.get_message_ins = self.push, self.look

    def push(self, messages: Any) -> Any:
        """Push messages and ring."""
        listed = list(messages)
        pushed = list(self._push(listed))
        with self._changed:  # only now: all messages of a round are handed out in one turn
            self._waiting += len(pushed)
            self._changed.notify_all()
        return pushed

    def look(self, node_id: int, *args: Any, **kwargs: Any) -> Any:
        """Wait until there is something, at the first node; then look."""
        with self._changed:
            self._first = node_id if self._first is None else self._first
            if node_id == self._first and not self._waiting:
                self._changed.wait(IDLE)
        found = self._look(node_id, *args, **kwargs)
        with self._changed:
            self._waiting = max(0, self._waiting - len(found))
        return found


def _replace_dead_workers() -> None:
    """Let the engine's pool take a new worker in the place of one that died."""
    workers: Any = importlib.import_module(WORKERS)
    pool, gone = workers.BasicActorPool, workers.ray.exceptions.RayActorError
    fetch = pool.fetch_result_and_return_actor_to_pool
    if getattr(fetch, "replaces", False):
        return

    def fetching(self: Any, future: Any) -> Any:
        try:
            return fetch(self, future)
        except gone:
            # The engine puts back whoever stands here.
            self._future_to_actor[future] = self.create_actor_fn()
            raise

    fetching.replaces = True  # type: ignore[attr-defined]
    pool.fetch_result_and_return_actor_to_pool = fetching
