"""The grid of Ray workers: the rows of one process, whoever dies; here without a cluster."""

import pytest
from fake_ray import FakeRay

from experiments import grids
from experiments.cluster import connection
from experiments.cluster.placement import Placement
from experiments.cluster.pool import ClusterError
from experiments.simulation import run_one, simulate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.failures import PluginError
from fedrobust.runs.folder import RunFolder, timeless
from tests.conftest import Stopped, stop_after

ALIE = {"name": "alie", "z": 1.5, "knowledge": "omniscient"}
CASES = {
    "colluders": {"rule": "nnm+krum", "attack": ALIE, "worker_momentum": 0.5},
    "compression": {"compression": {"bits": 8}},
    "aspis": {
        "mode": "redundancy",
        "clients": 7,
        "rule": "",
        "redundancy": {"scheme": "aspis", "replication": 3},
        "attack": "reversed_gradient",
    },
}


@pytest.fixture
def cluster(monkeypatch):
    """Put a fake cluster in the place of Ray; returns a function that makes one."""

    def made(**settings):
        from contextlib import nullcontext

        ray = FakeRay(**settings)
        monkeypatch.setattr(connection, "connected", lambda address: nullcontext(ray))
        return ray

    monkeypatch.setenv("FEDROBUST_CORES", "0")  # this process is no worker's
    return made


def on_call(number, method="serve"):
    """Say that the worker dies that takes one of the calls, counted from 1."""
    seen = []

    def dies(actor, called):
        if called == method:
            seen.append(actor.number)
        return called == method and len(seen) in number

    return dies


@pytest.mark.parametrize("case", ["colluders", "compression"])
def test_the_rows_of_one_process(small, cluster, case):
    ray = cluster(cores=3)
    e = from_dict(small | CASES[case])
    assert timeless(run_one(e, grid="ray")) == timeless(run_one(e))
    assert {number for number, method, _ in ray.calls if method == "serve"} == {0, 1, 2}
    assert all(actor.dead for actor in ray.actors), "they end with the run"


def test_a_worker_that_dies_costs_nobody_a_vote(small, cluster):
    e = from_dict(small | CASES["colluders"])
    ray = cluster(cores=2, dies=on_call([5]))
    assert timeless(run_one(e, grid="ray")) == timeless(run_one(e))
    assert len(ray.actors) == 3, "one died, one was started in its place"


def test_a_worker_that_died_twice_is_out(small, cluster):
    ray = cluster(cores=2, dies=lambda actor, method: method == "serve" and actor.number in (0, 2))
    e = from_dict(small)
    assert timeless(run_one(e, grid="ray")) == timeless(run_one(e))
    assert len(ray.actors) == 3
    assert {n for n, method, _ in ray.calls if method == "serve"} == {1}


def test_fewer_than_half_stop_the_run_with_the_reason(small, cluster):
    cluster(cores=3, dies=lambda actor, method: method == "serve" and actor.number != 1)
    with pytest.raises(ClusterError, match=r"1 of 3 workers are left, the last died: actor \d was"):
        run_one(from_dict(small), grid="ray")


def test_a_run_that_stops_goes_on_with_what_clients_remember(small, cluster, tmp_path):
    cluster(cores=2)
    e = from_dict(small | {"worker_momentum": 0.9})
    folder = RunFolder(tmp_path, e)
    with pytest.raises(Stopped):
        run_one(e, grid="ray", folder=folder, on_row=stop_after(2))
    rows = run_one(e, grid="ray", folder=RunFolder(tmp_path, e), resume=True)
    assert timeless(rows) == timeless(run_one(e))


def test_an_attacks_own_mistake_ends_the_run(small, cluster):
    cluster(cores=2)

    def wrong(honest, *, n, f):
        """Fail."""
        return honest.nothing

    with pytest.raises(PluginError, match="attack 'wrong' failed"):
        simulate(small, attack=wrong, grid="ray")


def test_missing_data_are_named_with_the_machine(small, cluster, tmp_path):
    cluster(cores=1)
    e = from_dict(small | {"data": "cifar10"})
    with pytest.raises(ConfigError, match=r"on .+: .*cifar10"):
        run_one(e, grid="ray", data_root=str(tmp_path))


def test_without_ray_it_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match="needs Ray, which is not installed: pip install"):
        run_one(from_dict(small), grid="ray")


def test_the_environment_is_read_when_it_is_asked(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somebody:6379")
    assert connection.address_of("local") == "local"
    assert connection.address_of("env") == "somebody:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match="reads RAY_ADDRESS, which is not set"):
        connection.address_of("env")


def test_every_grid_is_in_the_table(small):
    assert {*grids.CARRIERS, grids.FLOWER} == set(grids.GRIDS)
    with pytest.raises(ConfigError, match="unknown grid 'rai'; did you mean 'ray'"):
        simulate(small, grid="rai")


def taken(queues, workers):
    parts = []
    while queues:
        for worker in workers:
            if queues:
                parts.append((worker, queues.take(worker)))
    return parts


def test_the_longest_are_asked_first_and_all_once():
    placement = Placement()
    seconds = [1.0, 9.0, 2.0, 4.0, 1.0, 1.0]
    placement.learn(0, range(6), seconds)
    parts = taken(placement.queues(range(6), [0, 1], most=10), [0, 1])
    assert parts[0] == (0, [1]), "half of the work is one client"
    assert sorted(client for _, part in parts for client in part) == list(range(6))
    assert {worker for worker, _ in parts} == {0, 1}, "who is free takes of the other's"
    asked = [seconds[part[0]] for _, part in parts]
    assert asked == sorted(asked, reverse=True)


def test_a_client_stays_with_its_worker_while_all_are_busy_alike():
    placement = Placement()
    first = taken(placement.queues(range(8), [0, 1], most=10), [0, 1])
    for worker, part in first:
        placement.learn(worker, part, [1.0] * len(part))
    again = taken(placement.queues(range(8), [0, 1], most=10), [0, 1])
    assert {c: w for w, part in first for c in part} == {c: w for w, part in again for c in part}


def test_a_message_has_one_content_and_a_largest_size():
    placement = Placement()
    queues = placement.queues(range(20), [0], most=3, content=lambda client: client % 2)
    for _, part in taken(queues, [0]):
        assert len(part) <= 3
        assert len({client % 2 for client in part}) == 1


def test_orphans_go_to_another_worker_unless_there_is_none():
    placement = Placement()
    queues = placement.queues(range(4), [0, 1], most=10)
    part = queues.take(0)
    queues.put_back(part, instead_of=0)
    assert sorted(c for worker, p in taken(queues, [1]) for c in p) == list(range(4))
    alone = placement.queues(range(4), [0], most=10)
    alone.put_back(alone.take(0), instead_of=0)
    assert len(alone) == 4
