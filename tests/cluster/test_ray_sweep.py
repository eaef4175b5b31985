"""Runs over the workers of a cluster and over processes: one that fails costs no other one."""

from contextlib import nullcontext

import pytest
from fake_ray import FakeRay

from experiments import simulation, sweep
from experiments.cluster import runs
from experiments.failed_runs import FailedRunsError
from experiments.simulation import run_one
from experiments.sweep import Sweep
from fedrobust.data.sets import DataError
from fedrobust.experiment.load import expand, from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.runs.folder import RunFolder, timeless

FATAL = '''
"""Rules that fail as code fails, and as processes fail."""
import os, signal


def wrong(updates, *, f):
    """Fail.

    References
    ----------
    None.
    """
    return updates.nothing


def fatal(updates, *, f):
    """Kill the process.

    References
    ----------
    None.
    """
    os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def cluster(monkeypatch):
    def made(**settings):
        ray = FakeRay(**settings)
        monkeypatch.setattr(runs, "connected", lambda address: nullcontext(ray))
        return ray

    monkeypatch.setenv("FEDROBUST_CORES", "0")
    return made


def a_sweep(small, rules=("mean", "krum", "median")):
    return expand(small | {"rounds": 2, "sweep": {"rule": list(rules)}})


def rows_in(folder, experiment):
    return timeless(RunFolder(folder, experiment).rows())


def check_equal(folder, experiments):
    for e in experiments:
        assert rows_in(folder, e) == timeless(run_one(e))


def test_a_sweep_over_workers_leaves_the_same_folders(small, cluster, tmp_path):
    ray = cluster(cores=2)
    experiments, heard = a_sweep(small), []
    Sweep(experiments, tmp_path, on="ray", models=True).run(lambda e, row: heard.append(row))
    check_equal(tmp_path, experiments)
    assert len(heard) == 9
    assert len(ray.actors) == 2
    for e in experiments:
        files = {path.name for path in RunFolder(tmp_path, e).path.iterdir()}
        assert {"checkpoint.npz", "model.safetensors", "environment.json"} <= files
    Sweep(experiments, tmp_path, on="ray", models=True).run(lambda e, row: pytest.fail("finished"))


def test_a_run_whose_worker_dies_goes_on_elsewhere(small, cluster, tmp_path):
    calls = []

    def dies(actor, method):
        calls.append(method)
        return method == "run" and calls.count("run") == 4

    ray = cluster(cores=2, dies=dies)
    experiments = a_sweep(small | {"worker_momentum": 0.5})
    Sweep(experiments, tmp_path, on="ray").run(lambda e, row: None)
    check_equal(tmp_path, experiments)
    assert len(ray.actors) == 3


def test_a_run_that_kills_its_workers_has_failed_and_no_other(small, cluster, tmp_path):
    experiments = a_sweep(small)
    poison = experiments[1]

    def dies(actor, method):
        held = actor.held
        return method == "run" and getattr(held, "poisoned", False)

    cluster(cores=4, dies=dies)
    compute = runs.Runner.run

    def run(self, experiment, saved):
        self.poisoned = experiment.run_id == poison.run_id
        yield from compute(self, experiment, saved)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Runner, "run", run)
        with pytest.raises(FailedRunsError, match=r"(?s)1 of 3 .*krum.* worker died: actor"):
            Sweep(experiments, tmp_path, on="ray").run(lambda e, row: None)
    check_equal(tmp_path, [experiments[0], experiments[2]])


@pytest.mark.parametrize("where", [{"workers": 1}, {"on": "ray"}])
def test_one_failing_run_cancels_no_other(small, cluster, tmp_path, where, monkeypatch):
    cluster(cores=2)
    experiments = a_sweep(small)
    given = simulation.run

    def run(nodes, experiment, **settings):
        if experiment.rule["name"] == "krum":
            raise RuntimeError("no room")
        return given(nodes, experiment, **settings)

    monkeypatch.setattr(simulation, "run", run)
    with pytest.raises(FailedRunsError) as caught:
        Sweep(experiments, tmp_path, **where).run(lambda e, row: None)
    first, reason = str(caught.value).splitlines()
    assert first == "1 of 3 runs failed, the others are finished and kept"
    assert "krum" in reason and reason.endswith("RuntimeError: no room")
    assert caught.value.experiments == [experiments[1]]
    monkeypatch.undo()
    check_equal(tmp_path, [experiments[0], experiments[2]])


def test_what_hears_the_rows_ends_the_sweep(small, cluster, tmp_path):
    cluster(cores=2)

    def hears(experiment, row):
        raise RuntimeError("the tracker is away")

    for where in ({"workers": 1}, {"on": "ray"}):
        with pytest.raises(RuntimeError, match="the tracker is away"):
            Sweep(a_sweep(small), tmp_path, **where).run(hears)


def test_a_single_run_keeps_its_own_error(small, tmp_path):
    e = from_dict(small | {"data": "cifar10"})
    with pytest.raises(DataError, match="cifar10"):
        Sweep([e], tmp_path, data_root=str(tmp_path)).run(lambda e, row: None)


def test_one_place_is_enough(small, tmp_path):
    with pytest.raises(ConfigError, match="--on ray gives each worker whole runs"):
        Sweep(a_sweep(small), tmp_path, "ray", on="ray").run(print)
    with pytest.raises(ConfigError, match="unknown place 'rey' for runs; did you mean 'ray'"):
        Sweep(a_sweep(small), tmp_path, on="rey").run(print)
    assert sweep.PLACES == ["processes", "ray"]


@pytest.mark.exhaustive
def test_a_killed_process_costs_its_own_run_only(small, tmp_path):
    from fedrobust import plugins

    file = tmp_path / "fatal.py"
    file.write_text(FATAL)
    plugins.use(file)
    experiments = a_sweep(small, ("mean", "fatal", "wrong", "median"))
    with pytest.raises(FailedRunsError) as caught:
        Sweep(experiments, tmp_path / "out", workers=2).run(lambda e, row: None)
    assert "2 of 4 runs failed" in str(caught.value)
    assert "its process was killed twice" in str(caught.value)
    assert "rule 'wrong' failed: AttributeError" in str(caught.value)
    check_equal(tmp_path / "out", [experiments[0], experiments[3]])
