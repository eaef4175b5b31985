"""``flwr run . --run-config 'use="FILE.py" ...'``: a user's file through Flower's own command."""

from pathlib import Path

import pytest

from experiments import flower_run
from experiments.flower_processes import flwr
from fedrobust import plugins, simulate
from fedrobust.experiment.load import from_dict, read
from fedrobust.runs.folder import RunFolder, timeless

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
ROOT = Path(__file__).parents[2]
FILE = '''
from torch import nn
from fedrobust.models import low_rank


def adapted(shape, classes):
    """A network with adapters of rank 2 and nothing else to train."""
    return low_rank(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, classes)), rank=2)


def middle(updates, *, f):
    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)
'''
SETTING = """
data = "digits"
model = "adapted"
adapters = "product"
clients = 6
byzantine = 1
rounds = 3
seed = 1
rule = "middle"
attack = "opt_alie"
training = { mode = "update", steps = 3, lr = 0.02 }
server = { lr = 1.0, momentum = 0.0, evaluate_every = 1 }
"""


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    (tmp_path / "mine.toml").write_text(SETTING)
    plugins.use(file)
    yield file
    for kind, name in list(plugins.ROOM.parts):
        plugins.ROOM.take(kind, name)
    plugins.ROOM.files.clear()


def test_flowers_command_takes_a_file_of_the_users(mine, tmp_path):
    experiment, home, output = from_dict(read(SETTING)), tmp_path / "home", tmp_path / "results"
    home.mkdir()
    words = f'experiment="{mine.with_suffix(".toml")}" use="{mine}" output="{output}" hosts=2'
    nodes = "num-supernodes=2 client-resources-num-cpus=1"
    with flower_run._superlink(home) as environment:
        command = ["run", str(ROOT), "--run-config", words, "--federation-config", nodes]
        answer = flwr(command, environment)
        assert "run-id" in answer, answer
        target = RunFolder(output, experiment)
        rows = flower_run.follow(str(answer["run-id"]), environment, target, lambda row: None)
    here = simulate(experiment).runs[0][1]
    assert timeless(rows) == timeless(here)
    assert target.finished and len(rows) == 4
