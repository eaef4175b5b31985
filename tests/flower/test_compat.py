"""The private doors of Flower: which of them are there, and in which versions they were tried."""

import ast
import re
from pathlib import Path

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
