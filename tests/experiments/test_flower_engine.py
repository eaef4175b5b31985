"""Flower's own engine (SuperLink, Ray) gives the same rounds as the in-process grid."""

import contextlib
import os
import signal
import socket
import threading

import pytest

from experiments.benchmarks.processes import workers_of
from experiments.flower_processes import FlowerRunError
from experiments.flower_run import run_on_flower
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.runs.folder import RunFolder, timeless

pytestmark = pytest.mark.slow


def test_the_same_rounds_through_flower(small, tmp_path):
    attack = {"name": "alie", "z": 1.5, "knowledge": "omniscient"}
    changes = {"rule": "nnm+krum", "attack": attack, "worker_momentum": 0.5, "rounds": 2}
    e = from_dict(small | changes)
    heard = []
    folder = RunFolder(tmp_path / "results", e)
    through_flower = run_on_flower(e, folder=folder, on_row=heard.append)
    here = run_one(e)
    for row in [*through_flower, *here]:
        row.pop("seconds")
    assert through_flower == here
    assert len(heard) == 3
    assert folder.finished


def test_a_run_that_fails_says_why(small, tmp_path):
    e = from_dict(small | {"data": "cifar10", "model": "linear"})
    with pytest.raises(FlowerRunError, match="no complete 'cifar10'"):
        run_on_flower(e, data_root=str(tmp_path))


class Listener:
    """A foreign SuperLink's port: it takes connections, says that it is well, and counts them."""

    def __init__(self, port):
        self.calls = 0
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.close()

    def close(self):
        self._socket.close()


# What ``flwr run`` takes for the local SuperLink, and Flower's other defaults.
DEFAULT_PORTS = (39091, 39093, 9093, 8000)


@pytest.mark.exhaustive
def test_a_foreign_superlink_on_the_default_ports_is_not_spoken_to(small, tmp_path):
    listeners = []
    for port in DEFAULT_PORTS:
        with contextlib.suppress(OSError):  # somebody else listens there: just as foreign
            listeners.append(Listener(port))
    e = from_dict(small | {"rounds": 1})
    try:
        rows = run_on_flower(e, folder=RunFolder(tmp_path / "results", e))
    finally:
        for listener in listeners:
            listener.close()
    assert [row["round"] for row in rows] == [0, 1]
    assert [listener.calls for listener in listeners] == [0] * len(listeners)


def test_a_worker_that_is_killed_costs_no_round_and_no_number(small, tmp_path):
    """Its clients are asked again in the same round, of another worker, with the same numbers."""
    e = from_dict(small | {"attack": "alie", "worker_momentum": 0.5, "rounds": 120})
    killed = []

    def strike(row):
        if row["round"] >= 1 and not killed:
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
            killed.append(row["round"])

    folder = RunFolder(tmp_path / "results", e)
    through_flower = run_on_flower(e, folder=folder, hosts=2, on_row=strike)
    assert killed[0] < e.rounds
    assert timeless(through_flower) == timeless(run_one(e))
