"""Several devices: each run of a sweep takes the one that is free."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from experiments import run_processes
from experiments.failed_runs import Listener
from experiments.sweep import Sweep
from fedrobust.experiment.load import from_dict

DEVICES = ("left", "right")


@dataclass(frozen=True)
class Noted:
    """A sweep whose runs say where they are.

    The one of seed 1 waits until all others are done, and they until it has begun.
    """

    folder: Path
    others: int = 0
    use: str = ""
    device: str = ""

    def on_device(self, device):
        return replace(self, device=device)

    def may_end(self, seed):
        if seed != 1:
            return (self.folder / "begun 1").exists()
        return len(list(self.folder.glob("done *"))) == self.others

    def run_here(self, experiment, on_row):
        end = time.monotonic() + 120
        (self.folder / f"begun {experiment.seed}").touch()
        while self.others and not self.may_end(experiment.seed):
            assert time.monotonic() < end, "the other process does not come"
            time.sleep(0.05)
        (self.folder / f"done {experiment.seed}").touch()
        on_row({"device": self.device, "seed": experiment.seed})


@pytest.mark.slow
def test_a_slow_run_keeps_its_device_and_the_others_share_what_is_free(small, tmp_path):
    experiments = [from_dict(small | {"seed": seed}) for seed in range(1, 6)]
    seen = {}
    told = Listener(lambda e, row: seen.update({row["seed"]: row["device"]}))
    tasks = [(Noted(tmp_path, others=4), e) for e in experiments]
    failures = run_processes.spread(tasks, 2, told, devices=DEVICES)
    failures.settle(experiments)
    assert seen.keys() == {1, 2, 3, 4, 5}
    others = {device for seed, device in seen.items() if seed != 1}
    assert others == set(DEVICES) - {seen[1]}


@pytest.mark.slow
def test_more_processes_than_devices_share_them(small, tmp_path):
    experiments = [from_dict(small | {"seed": seed}) for seed in (2, 3)]
    seen = []
    told = Listener(lambda e, row: seen.append(row["device"]))
    tasks = [(Noted(tmp_path), e) for e in experiments]
    run_processes.spread(tasks, 2, told, devices=DEVICES[:1])
    assert seen == ["left", "left"]


def test_a_sweep_on_cuda_has_all_gpus_and_on_another_device_that_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert Sweep([], tmp_path, device="cuda").devices() == ["cuda:0", "cuda:1", "cuda:2"]
    assert Sweep([], tmp_path, device="cuda:1").devices() == ["cuda:1"]
    assert Sweep([], tmp_path).devices() == ["cpu"]
    assert Sweep([], tmp_path, device="cuda").on_device("cuda:2").device == "cuda:2"
