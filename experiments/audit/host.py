"""A process that imports the heavy libraries once and forks one child a cell.

Started as ``python -m experiments.audit.host``; orders come as JSON lines on its standard input,
one line a finished cell goes out. It stays on one thread, which makes forking safe. A child is a
session of its own: at its time limit it ends with everything that it started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.audit.application import Application
from experiments.audit.cell import Cell
from experiments.audit.running import SAFE, run
from fedrobust import plugins
from fedrobust.flower.reply_aggregation import ReplyAggregator

OUTPUT, RESULT = "output.txt", "result.json"
PAUSE = 0.02  # seconds between looks at the children
ENDING = {signal.SIGTERM}


def main() -> None:
    """Serve orders until the input ends; then end every child that is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the audit is interrupted, and ends this process
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    running: dict[int, dict[str, Any]] = {}
    buffer = b""
    try:
        while True:
            if select.select([0], [], [], PAUSE)[0]:
                piece = os.read(0, 65536)
                if not piece:  # the audit is gone, however it ended
                    return
                *lines, buffer = (buffer + piece).split(b"\n")
                for order in map(json.loads, filter(None, lines)):
                    _obey(order, running)
            _reap(running, answers)
    finally:
        for pid in running:
            _end(pid)


def _obey(order: dict[str, Any], running: dict[int, dict[str, Any]]) -> None:
    if "warm" in order:
        for name in SAFE:
            if name in order["warm"]:
                with contextlib.suppress(Exception):  # the app's own import tells the fault
                    importlib.import_module(name)
        rows = torch.arange(64.0).reshape(8, 8)
        for rule in order.get("rules", ()):  # compiled code is loaded once, not in every cell
            with contextlib.suppress(ValueError):
                ReplyAggregator(rule, seed=0).rehearse(rows)
        return
    gc.freeze()  # Flower's strategies collect after each array: not through all the imports
    held = {"id": order["id"], "end": time.monotonic() + order["limit"], "hung": False}
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # a child is noted, or there is none
    pid = os.fork()
    if pid == 0:
        _child(order)
    running[pid] = held
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _child(order: dict[str, Any]) -> None:
    """Run one cell; leave by ``os._exit`` so that nothing of the host's runs again."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        scratch = Path(order["scratch"])
        log = os.open(scratch / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0), os.dup2(log, 1), os.dup2(log, 2)
        # The host's own: a cell that held its answers open would keep the audit waiting at the end.
        os.closerange(3, 256)
        given = order["application"]
        application = Application(**{**given, "folder": Path(given["folder"])})
        for file in order.get("use", ()):
            plugins.use(file)
        if order.get("use"):
            plugins.provide({"attack": order["cell"]["attack"]})  # rules are found when spelled
        result = run(application, Cell(**order["cell"]), Path(order["folder"]), scratch)
        written = scratch / (RESULT + ".part")
        written.write_text(json.dumps(result.as_table()))
        # Whole or not at all: a cell may be killed while it writes.
        written.replace(scratch / RESULT)
        code = 0
    finally:
        os._exit(code)


def _reap(running: dict[int, dict[str, Any]], answers: Any) -> None:
    for pid, held in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            if time.monotonic() > held["end"]:
                held["hung"] = True
                _end(pid)
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what the cell started and left behind
        del running[pid]
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"id": held["id"], "code": code, "hung": held["hung"]}), file=answers)


def _end(pid: int) -> None:
    """End a child and what is left of its group; one that has no group yet ends by itself."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # the answers alone go out
    main()
