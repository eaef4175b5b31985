"""The private doors of Flower: which of them are there, and in which versions they were tried."""

import ast
from pathlib import Path

import pytest

from fedrobust.flower import _compat

ROOT = Path(__file__).parents[1]
DOORS = ("flwr.supercore", "flwr.superlink", "flwr.supernode", "flwr.proto")
ROOMS = ("fedrobust", "strategies", "clients", "experiments")


def test_the_installed_flower_is_one_that_was_tried():
    assert _compat.version() in _compat.TRIED


def test_private_doors_are_opened_in_one_file():
    seen, wrong = 0, []
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.startswith(DOORS):
                seen += 1
                if path.name != "_compat.py":
                    wrong.append(f"{path.relative_to(ROOT)}: {module}")
    assert seen >= 10 and not wrong


def test_the_gate_is_the_outermost_middleware(monkeypatch):
    from flwr.superlink import cli, extensions, main

    class Own:
        def __init__(self, app, word):
            self.app, self.word = app, word

    started = []
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(cli, "flower_superlink", lambda: started.append(True))
    monkeypatch.setattr("sys.argv", ["x"])
    _compat.run_superlink(["--insecure"], Own, word="here")
    app = main.create_app()
    outermost = app.user_middleware[0]
    assert started and outermost.cls is Own and outermost.kwargs == {"word": "here"}


def test_a_flower_that_takes_no_gate_is_not_started(monkeypatch):
    from flwr.superlink import cli, extensions, main

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(main, "_get_middleware", lambda: [])
    monkeypatch.setattr(cli, "flower_superlink", lambda: pytest.fail("started without a gate"))
    with pytest.raises(_compat.DoorError, match="does not take a gate"):
        _compat.run_superlink([], object)
