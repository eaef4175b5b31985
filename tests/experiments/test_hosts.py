"""How many hosts: read, refused, or as many as the machine has cores."""

import os

import pytest
import torch

from experiments import flower_run
from experiments.hosts import check_hosts, hosts_of, usual_hosts
from experiments.simulation import run_one, simulate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError


@pytest.mark.parametrize(("text", "hosts"), [("auto", 0), ("1", 1), ("12", 12)])
def test_hosts_are_read(text, hosts):
    assert hosts_of(text) == hosts


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "Auto", "99999"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match=r"choose a number from 1 on, or auto"):
        hosts_of(text)


@pytest.mark.parametrize("hosts", [-1, True, 1.0])
def test_a_number_that_is_none_is_refused(small, hosts):
    with pytest.raises(ConfigError, match="a number from 1 on"):
        simulate(small, grid="flower", hosts=hosts)


def test_a_grid_without_hosts_refuses_them(small):
    with pytest.raises(ConfigError, match="grid 'in_process' has none; choose grid flower"):
        simulate(small, hosts=2)
    check_hosts(0, "in_process")


def test_auto_is_one_a_core_or_gpu_and_at_least_one(small, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    e = from_dict(small)
    assert [usual_hosts(e, device) for device in ("cpu", "cuda", "cuda:1")] == [6, 4, 1]
    few = from_dict(small | {"clients": 5, "byzantine": 0, "rule": "mean"})
    assert usual_hosts(few, "cpu") == 5
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert usual_hosts(e, "cuda") == 1


def test_the_number_reaches_flowers_engine(small, monkeypatch):
    asked = []

    def took(experiment, *, hosts, **rest):
        asked.append(hosts)
        return []

    monkeypatch.setattr(flower_run, "run_on_flower", took)
    run_one(from_dict(small), grid="flower", hosts=3)
    run_one(from_dict(small), grid="flower")
    assert asked == [3, 0]
