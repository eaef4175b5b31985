"""What is equal bit for bit on one machine; the list is in the documents, explanation/bits.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equal_bits
import numba
import pytest
import threadpoolctl
import torch
from equal_bits import CASES, POLLUTIONS, experiment, outcome, over, timeless

from clients.client_app import app, train_together
from experiments.simulation import run_one
from experiments.sweep import Sweep
from fedrobust.flower import CohortGrid, InProcessGrid
from fedrobust.runs.folder import RunFolder
from strategies.checkpointing import Checkpoints

ROOT = Path(__file__).parents[1]


def start(*words, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_NUM_THREADS", None)
    command = [sys.executable, equal_bits.__file__, *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.PIPE
    )


def end(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def fresh():
    """Each case's outcome in a fresh process."""
    return end(start(*CASES, threads=1))


@pytest.fixture(autouse=True)
def _limits_restored():
    """Give the threads back as they were, whatever a test leaves behind."""
    before, numbas = torch.get_num_threads(), numba.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        torch.set_num_threads(before)
        yield
    numba.set_num_threads(numbas)
    torch.set_num_threads(before)


def test_the_cases_amplify_rounding(fresh):
    """Krum decides among attackers who differ by a trace, FoolsGold's weights lie between 0 and 1.

    And the runs are no shells: a model that moved, a vote of three.
    """
    winners = {row["weights"].index(1.0) for row in fresh["krum"]["rows"][1:]}
    assert winners <= set(fresh["krum"]["rows"][1]["byzantine"]) and len(winners) > 1
    weights = [w for row in fresh["foolsgold"]["rows"][1:] for w in row["weights"]]
    assert sum(0 < w < 1 for w in weights) > 10
    losses = [fresh[name]["rows"][-1]["loss"] for name in ("foolsgold", "redundancy")]
    assert len({fresh["foolsgold"]["rows"][0]["loss"], *losses}) == 3
    assert fresh["ensemble"]["rows"][-1]["voters"] == 3


@pytest.mark.slow
def test_other_threads_another_order_and_a_forked_child(fresh):
    backwards = start(*reversed(CASES), threads=4)
    child = start(*CASES, "--fork", threads=1)  # a team of OpenMP's does not survive a fork
    assert end(backwards) == fresh
    assert end(child) == fresh


@pytest.mark.slow
@pytest.mark.parametrize("pollution", POLLUTIONS)
def test_nothing_that_ran_before_changes_a_bit(fresh, pollution):
    POLLUTIONS[pollution]()
    for name in CASES:
        assert outcome(name) == fresh[name], name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_experiments_that_take_turns(fresh, name):
    """After each row of one, another runs as a whole."""
    others = iter(3 * [other for other in CASES if other != name])

    def meanwhile(row):
        other = next(others)
        assert outcome(other) == fresh[other], other

    assert outcome(name, on_row=meanwhile) == fresh[name]


@pytest.mark.slow
def test_processes_of_a_sweep(fresh, tmp_path):
    """Spawned workers, two runs each, in whatever order they come."""
    sweep = Sweep([experiment(name) for name in CASES], tmp_path, workers=2)
    seen = []
    sweep.run(lambda e, row: seen.append(row))
    for name, folder in zip(CASES, sweep.folders(), strict=True):
        rows = [json.loads(line) for line in (folder / "rounds.jsonl").open()]
        assert timeless(rows) == fresh[name]["rows"], name
    assert len(seen) == sum(len(fresh[name]["rows"]) for name in CASES)


class Backwards(InProcessGrid):
    """Replies come back in the opposite order."""

    def send_and_receive(self, messages, *, timeout=None):
        return super().send_and_receive(messages, timeout=timeout)[::-1]


def nodes(name, kind=InProcessGrid, *, count=0, together=train_together):
    e = experiment(name)
    config = {"experiment": e.to_toml()}
    return kind(app, clients=count or e.clients, run_config=config, together=together)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_grids_hosts_and_orders(fresh, name):
    clients = experiment(name).clients
    for hosts in (1, 3):
        cohort = CohortGrid(nodes(name, count=hosts, together=None), clients=clients)
        assert over(cohort, name) == fresh[name], hosts
    assert over(nodes(name, together=None), name) == fresh[name]
    assert over(nodes(name, Backwards), name) == fresh[name]


class Stopped(Exception):
    """The run is stopped here."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "ensemble"])
def test_a_resumed_run_after_a_polluted_start(fresh, name, tmp_path, monkeypatch):
    """The first rounds run on a fresh limit, the rest after a foreign parallel loop."""
    monkeypatch.setattr(
        "experiments.simulation.Checkpoints", lambda write, saved: Checkpoints(write, saved, 0.0)
    )
    folder = RunFolder(tmp_path, experiment(name))

    def stop(row):
        if row["round"] == 1:
            raise Stopped

    with pytest.raises(Stopped):
        run_one(experiment(name), folder=folder, on_row=stop)
    POLLUTIONS["numba's own threads"]()
    models = []
    rows = run_one(experiment(name), folder=folder, resume=True, on_model=models.append)
    assert timeless(rows) == fresh[name]["rows"]
    assert equal_bits.bits(*models) == fresh[name]["model"]


def test_there_are_a_dozen_pollutions():
    assert len(POLLUTIONS) >= 12
