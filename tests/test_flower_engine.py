"""Flower's own engine (SuperLink, Ray) gives the same rounds as the in-process grid."""

import pytest

from experiments.flower_run import FlowerRunError, run_on_flower
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.runs.folder import RunFolder

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
