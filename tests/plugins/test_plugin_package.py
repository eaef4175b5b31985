"""A package of somebody else's, from TOML, the command line, Python and Flower's engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import listing
from experiments.results import load
from fedrobust import aggregation, plugins, simulate
from fedrobust.experiment.load import from_dict, read
from fedrobust.runs.folder import timeless

PACKAGE = Path(__file__).parents[1] / "plugin_package"
SETTING = """
data = "wines"
model = "bottleneck"
loss = "focal:gamma=1.0"
clients = 6
byzantine = 1
rounds = 6
seed = 1
rule = "slow_median"
attack = "drown:factor=2.0"
[training]
batch_size = 16
[server]
lr = 0.1
evaluate_every = 1
"""


@pytest.fixture
def acme(monkeypatch):
    """Put the package on the path, as an installation does; its parts are gone after the test."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield
    for kind, name in list(plugins.ROOM.parts):
        plugins.ROOM.take(kind, name)


def fedrobust(*words, folder):
    """Run the command in a process that finds the package."""
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *words], env=os.environ | {"PYTHONPATH": path},
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def rows_of(results):
    return json.loads(json.dumps(timeless(results.runs[0][1])))


def test_an_experiment_finds_what_a_package_offers(acme):
    assert "slow_median" not in aggregation.RULES
    experiment = from_dict(read(SETTING))
    assert experiment.rule == {"name": "slow_median", "f": 1}
    results = simulate(SETTING)
    assert results.accuracy > 0.5 and results.frame["loss"].iloc[-1] < results.frame["loss"].iloc[0]
    told = plugins.identities(experiment.to_dict())
    assert told["model bottleneck"].startswith("acme-fl 1.2 ")
    assert set(told) == {"data wines", "model bottleneck", "loss focal", "rule slow_median",
                         "attack drown"}  # fmt: skip


def test_the_list_shows_whose_each_is(acme):
    found = {
        e["name"]: e for e in listing.with_others("plug-ins of others", [])["plug-ins of others"]
    }
    assert set(found) >= {"bottleneck", "wines", "slow_median", "drown", "focal", "lost"}
    assert found["focal"] == {
        "name": "focal", "parameters": "gamma=2.0",
        "what": "loss of acme-fl 1.2: Cross-entropy, less of it where the model is sure.",
        "paper": "Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4.",
    }  # fmt: skip
    assert "acme-fl 1.2" in found["lost"]["what"] and "No module named" in found["lost"]["what"]
    assert "plug-ins of others" in listing.with_others(None, [])


def test_a_package_that_is_broken_is_named(acme):
    with pytest.raises(
        plugins.PlugInError,
        match=r"loss 'lost' of the package acme-fl 1\.2 cannot be loaded: ModuleNotFoundError",
    ):
        from_dict(read(SETTING) | {"loss": "lost"})


def test_two_packages_with_one_name_are_both_named(acme, tmp_path, monkeypatch):
    other = tmp_path / "other_fl-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-fl\nVersion: 0.1\n")
    (other / "entry_points.txt").write_text("[fedrobust.models]\nbottleneck = other:net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        plugins.PlugInError, match=r"offered by .*-fl .* and .*-fl .*: uninstall one"
    ):
        from_dict(read(SETTING))


@pytest.mark.slow
def test_the_command_line_runs_it(acme, tmp_path):
    (tmp_path / "wine.toml").write_text(SETTING)
    done = fedrobust("run", "wine.toml", "--workers", "1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = Path(json.loads(done.stdout)["runs"][0]["folder"])
    kept = load([tmp_path / folder])
    assert rows_of(kept) == rows_of(simulate(SETTING))
    own = json.loads((tmp_path / folder / "environment.json").read_text())["own"]
    assert own["rule slow_median"].startswith("acme-fl 1.2")


@pytest.mark.exhaustive
def test_flowers_engine_runs_it_to_the_same_rounds(acme, tmp_path):
    (tmp_path / "wine.toml").write_text(SETTING)
    done = fedrobust("run", "wine.toml", "--grid", "flower", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = load([tmp_path / json.loads(done.stdout)["runs"][0]["folder"]])
    here = rows_of(simulate(SETTING))
    there = rows_of(kept)
    assert [row["loss"] for row in there] == [row["loss"] for row in here]


@pytest.mark.slow
def test_sweeps_in_several_processes_find_the_package(acme, tmp_path):
    (tmp_path / "wine.toml").write_text(SETTING)
    words = ["sweep", "wine.toml", "--over", "rule=slow_median,median", "--workers", "2", "-q"]
    done = fedrobust(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "slow_median" in done.stdout
