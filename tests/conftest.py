"""Shared fixtures: small experiments, and the full data sets where they are at hand."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrobust.plugins.room import ROOM

SMALL: dict[str, Any] = {
    "data": "digits",
    "model": "linear",
    "clients": 10,
    "byzantine": 2,
    "rounds": 3,
    "seed": 3,
    "rule": "trimmed_mean",
    "attack": "none",
    "training": {"batch_size": 16},
    "server": {"lr": 0.5, "evaluate_every": 1},
}


class Stopped(Exception):
    """The run is stopped here."""


def stop_after(server_round: int) -> Callable[[dict[str, Any]], None]:
    """Return what ends a run by an error once the row of a round has come."""

    def on_row(row: dict[str, Any]) -> None:
        if row["round"] == server_round:
            raise Stopped

    return on_row


def finals(small: dict[str, Any], values: dict[tuple[Any, Any, int], float]) -> Any:
    """Return results whose runs end at given accuracies, by (rule, attack, seed)."""
    from experiments.results import Results
    from fedrobust.experiment.load import expand

    runs = []
    for (rule, attack, seed), value in values.items():
        (e,) = expand(small | {"rule": rule, "attack": attack, "seed": seed})
        runs.append((e, [{"round": 1, "accuracy": value}]))
    return Results(tuple(runs))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: two workers then end at about the same time.

    ``FEDROBUST_SHUFFLE=7`` runs the tests in an order of its own instead: none may need another.
    """
    if seed := os.environ.get("FEDROBUST_SHUFFLE"):
        random.Random(seed).shuffle(items)
        return
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Exempt what the imports made from garbage collection.

    Flower's stock strategies collect after each array that they read, which costs half a second
    in a process that has imported everything.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def small() -> dict[str, Any]:
    """Ten clients on the digits, three rounds."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}


@pytest.fixture(scope="session")
def data_root() -> str:
    """Root of the full data sets; tests that need it are skipped without one."""
    root = os.environ.get("FEDROBUST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the full data sets: set FEDROBUST_DATA")
    return root


@pytest.fixture(autouse=True)
def _plugins_of_one_test() -> Iterator[None]:
    """Take out what a test has put in for good, by ``plugins.use`` or ``--use``."""
    before, files = set(ROOM.parts), set(ROOM.files)
    yield
    for kind, name in set(ROOM.parts) - before:
        ROOM.take(kind, name)
    for file in set(ROOM.files) - files:
        del ROOM.files[file]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
