"""Ray itself: one machine, and a cluster of two nodes; the rows are those of one process."""

import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from clients.node import Host
from experiments.aggregate_command import aggregate_files
from experiments.cluster.connection import connected
from experiments.cluster.grid import RayGrid
from experiments.cluster.pool import pooled
from experiments.cluster.worker import Plan, Worker
from experiments.grids import Cluster
from experiments.simulation import run_one
from experiments.sweep import Sweep
from fedrobust.experiment.load import expand, from_dict
from fedrobust.runs.folder import RunFolder, timeless
from strategies.session import run

STORE = 150 * 2**20
ALIE = {"name": "alie", "z": 1.5, "knowledge": "omniscient"}
HARD = {"rule": "nnm+krum", "attack": ALIE, "worker_momentum": 0.5, "rounds": 4}


@pytest.fixture
def one_machine():
    import ray

    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, object_store_memory=STORE, **settings)
    try:
        yield ray
    finally:
        ray.shutdown()


@pytest.fixture
def two_nodes():
    from ray.cluster_utils import Cluster as Nodes

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    nodes = Nodes(initialize_head=True, head_node_args=node)
    try:
        nodes.add_node(num_cpus=1, object_store_memory=STORE)
        yield nodes
    finally:
        nodes.shutdown()


@contextmanager
def on_workers(ray, experiment, *, workers):
    plan = Plan(experiment, Host())
    with pooled(ray, Worker, plan, workers=workers, most=10, cuda=False) as pool:
        yield pool, RayGrid(ray, pool, clients=experiment.clients)


@pytest.mark.slow
def test_a_killed_worker_costs_nobody_a_vote(small, one_machine):
    e, rows = from_dict(small | HARD), []
    with on_workers(one_machine, e, workers=1) as (pool, nodes):
        worker = one_machine.get(pool.actor(0).process.remote())

        def on_row(row):
            rows.append(row)
            if row["round"] == 1:
                os.kill(worker, signal.SIGKILL)

        run(nodes, e, on_row=on_row)
    assert timeless(rows) == timeless(run_one(e))


@pytest.mark.exhaustive
def test_a_run_over_two_nodes(small, two_nodes):
    e = from_dict(small | HARD)
    there = run_one(e, grid="ray", cluster=Cluster(address=two_nodes.address, workers=2))
    assert timeless(there) == timeless(run_one(e))


@pytest.mark.exhaustive
def test_a_sweep_over_two_nodes(small, two_nodes, tmp_path):
    experiments = expand(small | {"sweep": {"rule": ["mean", "krum", "median", "meamed"]}})
    where = {"on": "ray", "ray_address": two_nodes.address}
    Sweep(experiments, tmp_path, **where).run(lambda e, row: None)
    for e in experiments:
        assert timeless(RunFolder(tmp_path, e).rows()) == timeless(run_one(e))


@pytest.mark.exhaustive
def test_a_node_that_goes_away_costs_nobody_a_vote(small, two_nodes):
    e, rows = from_dict(small | HARD), []
    with (
        connected(two_nodes.address) as ray,
        on_workers(ray, e, workers=2) as (pool, nodes),
    ):
        away = next(node for node in two_nodes.list_all_nodes() if node != two_nodes.head_node)

        def on_row(row):
            rows.append(row)
            if row["round"] == 1:
                two_nodes.remove_node(away, allow_graceful=False)

        run(nodes, e, on_row=on_row)
        assert pool.whereabouts().startswith("1 workers"), "the other one finds no place"
    assert timeless(rows) == timeless(run_one(e))


@pytest.mark.exhaustive
def test_no_cluster_is_joined_because_the_environment_names_it(small, two_nodes, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    with connected("local"):
        assert len(ray.nodes()) == 1
    with connected("env"):
        assert len(ray.nodes()) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", ["trimmed_mean:f=2", "nnm:f=2+geometric_median"])
def test_files_are_read_over_two_nodes(rule, two_nodes, tmp_path):
    paths = [tmp_path / f"client{client}.npy" for client in range(9)]
    for client, path in enumerate(paths):
        values = np.random.default_rng(client).normal(size=700_001)
        np.save(path, values.astype("float32"))
    here, there = tmp_path / "here.npy", tmp_path / "there.npy"
    aggregate_files(paths, rule, here)
    told = aggregate_files(paths, rule, there, ray=two_nodes.address)
    assert told["read_by"].startswith("2 workers") and told["bytes_read"] == 2 * 9 * 4 * 700_001
    assert np.allclose(np.load(here), np.load(there), rtol=1e-5, atol=1e-6)
