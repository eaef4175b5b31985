"""The private doors of Flower: which of them are there, and in which versions they were tried."""

import ast
import inspect
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedrobust.flower import _compat, _compat_apps, _compat_processes

ROOT = Path(__file__).parents[2]
# What Flower documents stands in flwr.app, .clientapp, .serverapp, .common, .server, .simulation.
DOORS = ("flwr.supercore", "flwr.superlink", "flwr.supernode", "flwr.proto", "flwr.compat",
         "flwr.common.", "flwr.server.", "flwr.simulation.")  # fmt: skip
FILES = ("_compat.py", "_compat_apps.py", "_compat_processes.py")
ROOMS = ("fedrobust", "strategies", "clients", "experiments")


def test_the_installed_flower_is_one_that_was_tried():
    assert _compat.version() in _compat.TRIED


def modules_in(node):
    """Return the modules that an import or a text names."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{name.name}" for name in node.names] if node.module else []
    if isinstance(node, ast.Import):
        return [f"{name.name}.*" for name in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [f"{node.value}.*"] if re.fullmatch(r"flwr(\.\w+)+", node.value) else []
    return []


def private(name):
    """Whether a dotted name leads behind a door; the last word may be a name of a public module."""
    module = name.rpartition(".")[0]
    return name.startswith(DOORS[:5]) or module.startswith(DOORS[5:])


def test_private_doors_are_opened_in_three_files():
    seen, wrong = 0, []
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for name in filter(private, modules_in(node)):
                seen += 1
                if path.name not in FILES:
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert seen >= 30 and not wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [("from flwr.server import History", False), ("from flwr.server import strategy", False),
     ("from flwr.server.server import fit_clients", True), ("import flwr.simulation.x", True),
     ("from flwr.common import log", False), ("from flwr.common.config import x", True),
     ("importlib.import_module('flwr.proto.x')", True), ("from flwr.supercore import x", True)],
)  # fmt: skip
def test_which_imports_are_private_doors(line, found):
    names = [name for node in ast.walk(ast.parse(line)) for name in modules_in(node)]
    assert any(map(private, names)) == found


def test_the_doors_behind_which_apps_run_take_what_they_are_called_with(monkeypatch):
    _compat_apps.check_doors()
    from flwr.server import server

    monkeypatch.setattr(server, "fit_clients", lambda instructions, workers: None)
    with pytest.raises(_compat.DoorError, match="fit_clients does not take client_instructions"):
        _compat_apps.check_doors()


def test_an_older_server_gets_its_own_function_back():
    from flwr.server import server

    before = server.fit_clients
    with pytest.raises(KeyError), _compat_apps.replaced_fit_clients(len):
        assert server.fit_clients is len
        raise KeyError
    assert server.fit_clients is before


class State:
    """The engine's store: what is handed out of it, to whom, once."""

    def __init__(self):
        self.held = {1: [], 2: []}

    def get_message_ins(self, node_id, limit=None):
        return [self.held[node_id].pop()] if self.held[node_id] else []


def test_messages_are_handed_out_when_they_come(monkeypatch):
    from flwr.superlink.grid import inmemory_grid

    state = State()
    grid = inmemory_grid.InMemoryGrid(SimpleNamespace(state=lambda: state))
    grid.push_messages = lambda messages: [state.held[m].append(m) or str(m) for m in messages]
    monkeypatch.setattr(_compat_apps, "_replace_dead_workers", lambda: None)
    monkeypatch.setattr(_compat_apps, "IDLE", 60)
    assert _compat_apps.hurry(grid, 0.02) and grid.pull_interval == 0.02
    got, took = [], []

    def extractor():
        for node in (1, 2, 1, 2):  # two turns, as the engine takes them
            got.append(grid.state.get_message_ins(node, limit=1))
            took.append(time.monotonic())

    thread = threading.Thread(target=extractor)
    thread.start()
    for number in (1, 2):
        time.sleep(0.05)
        assert len(took) == 2 * (number - 1), "it waits at the first node"
        assert grid.push_messages([1, 2]) == ["1", "2"]
        while len(took) < 2 * number:
            time.sleep(0.001)
    thread.join()
    assert got == [[1], [2], [1], [2]]


def test_other_grids_are_left_as_they_are():
    assert not _compat_apps.hurry(object(), 0.01)


def test_a_worker_that_died_is_replaced_and_one_that_failed_is_not(monkeypatch):
    from flwr.simulation.ray_transport import ray_actor

    class Gone(Exception):
        pass

    class Pool:
        def __init__(self):
            self._future_to_actor = {"dead": "old", "raised": "old", "well": "old"}
            self.create_actor_fn = lambda: "new"

        def fetch_result_and_return_actor_to_pool(self, future):
            if future != "well":
                raise Gone if future == "dead" else ValueError
            return "result"

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayActorError=Gone))
    monkeypatch.setattr(ray_actor, "BasicActorPool", Pool)
    monkeypatch.setattr(ray_actor, "ray", ray)
    for _ in range(2):  # once a process, however many runs it serves
        _compat_apps._replace_dead_workers()
    pool = Pool()
    with pytest.raises(Gone):
        pool.fetch_result_and_return_actor_to_pool("dead")
    with pytest.raises(ValueError):
        pool.fetch_result_and_return_actor_to_pool("raised")
    assert pool.fetch_result_and_return_actor_to_pool("well") == "result"
    assert pool._future_to_actor == {"dead": "new", "raised": "old", "well": "old"}


def test_the_engines_pool_and_grid_have_the_doors_that_are_used():
    pytest.importorskip("ray")
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    fetch = inspect.getsource(BasicActorPool)
    assert "self._future_to_actor.pop(future)" in fetch and "self.create_actor_fn" in fetch
    assert "pull_interval" in inspect.signature(InMemoryGrid).parameters
    looks = inspect.getsource(vce_api.add_messages_to_queue)
    assert "state.get_message_ins(node_id=node_id, limit=1)" in looks


def test_the_gate_is_the_outermost_middleware(monkeypatch):
    from flwr.superlink import cli, extensions, main

    class Own:
        def __init__(self, app, word):
            self.app, self.word = app, word

    started = []
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(cli, "flower_superlink", lambda: started.append(True))
    monkeypatch.setattr("sys.argv", ["x"])
    _compat_processes.run_superlink(["--insecure"], Own, word="here")
    app = main.create_app()
    outermost = app.user_middleware[0]
    assert started and outermost.cls is Own and outermost.kwargs == {"word": "here"}


def test_a_flower_that_takes_no_gate_is_not_started(monkeypatch):
    from flwr.superlink import cli, extensions, main

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(main, "_get_middleware", lambda: [])
    monkeypatch.setattr(cli, "flower_superlink", lambda: pytest.fail("started without a gate"))
    with pytest.raises(_compat.DoorError, match="does not take a gate"):
        _compat_processes.run_superlink([], object)
