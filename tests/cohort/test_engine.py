"""What hundreds of clients and rounds must not cost: copies, memory, processes left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
import torch

from clients import dispatch, honest
from clients.client_app import app, train_together
from experiments.benchmarks import engine
from experiments.simulation import run_one
from fedrobust import cores
from fedrobust.experiment.load import from_dict
from fedrobust.flower import CohortGrid, InProcessGrid, UpdateMatrix, tensor_of
from strategies.session import run


def test_rows_of_the_grids_matrix_are_that_matrix():
    matrix, like = UpdateMatrix(4), torch.zeros(3)
    rows = [matrix.row(place, like).fill_(place) for place in range(4)]
    assert all(matrix.row(place, like) is rows[place] for place in range(4))
    sent = [tensor_of(matrix.array(place, rows[place])) for place in range(4)]
    whole = matrix.gather(sent)
    assert whole.data_ptr() == rows[0].data_ptr() and torch.equal(whole, torch.stack(rows))
    assert matrix.gather(sent[1:3]).data_ptr() == rows[1].data_ptr()
    assert matrix.array(0, rows[0].clone()) is None, "an update elsewhere is not the row"
    kept = set()
    for chosen in ([row.clone() for row in rows[:2]], [rows[0], rows[1].clone()]):
        gathered = matrix.gather(chosen)  # no row is left for what comes from elsewhere
        assert torch.equal(gathered, torch.stack(chosen))
        assert gathered.data_ptr() != rows[0].data_ptr()
        kept.add(gathered.data_ptr())
    assert len(kept) == 1, "rounds of the same shape gather in the same memory"
    with pytest.raises(ValueError, match="no update"):
        matrix.gather([])
    wider = matrix.row(1, torch.zeros(5))
    assert wider.shape == (5,) and matrix.array(1, rows[1]) is None


def test_updates_in_kept_memory_change_no_number(small):
    omniscient = {"name": "alie", "knowledge": "omniscient"}
    for changes in (
        {},
        {"worker_momentum": 0.9},
        {"attack": "alie"},
        {"rule": "foolsgold"},
        {"attack": omniscient, "placement": {"name": "window", "length": 1}},
        {"attack": "drift_search", "clients": 15, "rule": "bulyan"},
        {"attack": "fang", "clients": 15, "participation": 0.6},
        {"attack": "gaussian"},
        {"attack": "nan_value"},
    ):
        e = from_dict(small | {"byzantine": 2, "rounds": 4} | changes)
        fresh = []
        # One host that keeps its clients apart: updates travel as they are, none lies in a matrix.
        nodes = InProcessGrid(app, clients=1, run_config={"experiment": e.to_toml()})
        run(CohortGrid(nodes, clients=e.clients), e, on_row=fresh.append)
        for row, other in zip(run_one(e), fresh, strict=True):
            assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_a_client_that_fails_while_trained_ahead_costs_its_own_reply(small, monkeypatch):
    """Clients before and after it are trained ahead, and each of them once."""
    e, trained = from_dict(small | {"rounds": 2, "attack": "none", "byzantine": 0}), []
    train = honest.train_alone

    def failing(node, task, *rest):
        trained.append((task.server_round, task.client))
        if task.client == 3:
            raise RuntimeError("no memory")
        return train(node, task, *rest)

    monkeypatch.setattr("clients.honest.train_alone", failing)
    row = run_one(e)[-1]
    assert row["replies"] == e.clients - 1
    last = [client for server_round, client in trained if server_round == 2]
    assert sorted(last) == sorted([*range(e.clients), 3]), "the failing one again in its turn"


def test_a_group_of_clients_is_trained_ahead(small, monkeypatch):
    """The same rows as above; here that it happens, and that slow clients are not kept waiting."""
    e, groups = from_dict(small | {"rounds": 1, "attack": "none", "byzantine": 0}), []
    ahead = dispatch._ahead

    def seen(*given):
        ready = ahead(*given)
        groups.append(len(ready))
        return ready

    monkeypatch.setattr(dispatch, "_ahead", seen)
    monkeypatch.setattr(dispatch, "LONGEST", 1e9)
    run_one(e)
    assert sum(groups) == e.clients and max(groups) == min(e.clients, dispatch.AHEAD)
    groups.clear()
    monkeypatch.setattr(dispatch, "LONGEST", 0.0)
    run_one(e)
    assert groups == [1] * e.clients


def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError


@pytest.mark.parametrize("hosts", [0, 2])
def test_memory_stays_flat_over_two_hundred_rounds(small, hosts):
    e = from_dict(
        small | {"rounds": 200, "attack": "alie", "server": {"evaluate_every": 100, "lr": 0.1}}
    )
    seen = {}

    def look(row):
        if row["round"] in (50, 199):
            seen[row["round"]] = resident()

    config = {"experiment": e.to_toml()}
    together = None if hosts else train_together
    nodes = InProcessGrid(app, clients=hosts or 10, run_config=config, together=together)
    run(CohortGrid(nodes, clients=10) if hosts else nodes, e, on_row=look)
    assert seen[199] - seen[50] < 4  # MiB; 150 rounds of updates alone would be 4


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_an_interrupt_ends_every_process(small, tmp_path, workers):
    document = small | {"rounds": 10**6, "sweep": {"seed": [1, 2]}}
    file = tmp_path / "long.toml"
    file.write_text(tomli_w.dumps(document))
    command = [sys.executable, "-m", "experiments.cli", "run", str(file), "--workers", str(workers),
               "--output", str(tmp_path / "results"), "--quiet"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # In the background this process ignores SIGINT, and what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        end = time.monotonic() + 400
        while not any(f.stat().st_size > 2000 for f in tmp_path.rglob("rounds.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # to the parent alone: it has to end its workers
        assert process.wait(timeout=100) == 130
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # the last helper goes when it sees that its parent has
                os.killpg(process.pid, 0)
                time.sleep(0.2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    rows = [json.loads(line) for line in next(tmp_path.rglob("rounds.jsonl")).open()]
    assert [row["round"] for row in rows] == list(range(len(rows)))


def claim(count, pipe):
    pipe.send((cores.pin(count), sorted(os.sched_getaffinity(0))))
    pipe.recv()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins on Linux only")
def test_two_workers_never_share_a_core(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    available = sorted(os.sched_getaffinity(0))
    fork = multiprocessing.get_context("spawn")
    workers, pipes = [], []
    for _ in range(2):
        here, there = fork.Pipe()
        worker = fork.Process(target=claim, args=(1, there))
        worker.start()
        workers.append(worker)
        pipes.append(here)
    told = [pipe.recv() for pipe in pipes]
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send("done")
        worker.join()
    pinned = [core for claimed, _ in told for core in claimed]
    assert len(pinned) == min(2, len(available))
    assert len(set(pinned)) == len(pinned)
    for claimed, affinity in told:
        assert list(claimed) == affinity or affinity == available
    assert cores.VARIABLE not in os.environ
    assert cores.pin_from_environment() == ()


def test_the_benchmark_measures_both_loops():
    settings = engine.Settings(rounds=4, device="cpu", clock="cpu", data_root=None)
    found = list(engine.cases(["in_process", "stacked"], ["mlp"], [3, 6], settings))
    assert len(found) == 6
    for row in found:
        if "exponent" in row:
            continue
        assert row["seconds"] > 0
        assert row["reference_seconds"] > 0
        assert row["ratio"] == pytest.approx(row["seconds"] / row["reference_seconds"])
    rows = {n: {"seconds": 0.1 * n**1.5} for n in (10, 100, 1000)}
    assert engine.growth(rows) == pytest.approx(1.5)
