"""Nothing mixes devices: every path runs on a device that is not there, with the CPU's numbers."""

import pytest
import torch
from elsewhere_device import DEVICE, Device

from experiments.benchmarks.rules import spec_of
from experiments.simulation import check_device, run_one
from fedrobust.aggregation import PREAGGREGATORS, RULES, aggregate, preaggregate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError

PGD = {"name": "pgd", "eps": 0.1, "step_size": 0.03, "steps": 2}
EXAMINED = {"eps": 0.1, "eval_steps": 2, "eval_images": 20}
ALONE = {"byzantine": 0, "attack": "none", "clients": 3}
VOTING = ALONE | {"rule": None, "training": {}, "server": {"evaluate_every": 1}}
TRANSFER = {"attacks": ["mi_fgsm", "mi_cwa"], "surrogates": ["mlp"], "epochs": 1, "images": 20}
SEVEN = {"clients": 7, "byzantine": 2, "rule": "median", "training": {}}
CASES = {
    "plain": {},
    "krum": {"rule": "krum"},
    "worker momentum": {"worker_momentum": 0.9},
    "local steps, adam, augmentation": {
        "training": {"mode": "update", "steps": 2, "optimizer": "adam", "lr": 0.01,
                     "augment": "flip+crop"},
    },
    "a cohort as one stack": {
        "training": {"mode": "update", "steps": 2, "cohort": "vmap", "lr": 0.01},
    },
    "adversarial": {"adversarial": EXAMINED | {"perturbation": PGD, "eval_attacks": "fgsm+pgd"}},
    "labels of a teacher": {
        "semi": {"mode": "pseudo", "labelled": 0.5, "teacher_rounds": 1},
        "adversarial": EXAMINED | {"perturbation": PGD, "loss": "trades:beta=6"},
    },
    "8 bits up": {"compression": {"bits": 8, "sides": "up"}},
    "8 bits both ways": {"compression": {"bits": 8, "sides": "both"}},
    "layer-wise steps": {"server": {"optimizer": "lalr", "lr": 0.01, "evaluate_every": 1}},
    "batch statistics": {"model": "bn_cnn"},
    "two batch statistics": {
        "model": "bn_cnn",
        "batchnorm": {"name": "dual"},
        "adversarial": EXAMINED | {"perturbation": {"name": "fgsm", "eps": 0.1}},
    },
    "redundancy": SEVEN | {"redundancy": {"name": "aspis", "batch": 70}},
    "redundancy, files together": SEVEN
    | {"redundancy": {"name": "aspis", "batch": 70, "vmap_files": 8}},
    "a crafted attack": {"attack": "seesaw"},
    "a trained attack": {"attack": "alie_backdoor:epochs=1"},
    "poisoned labels": {"attack": "label_flip"},
    "a broken reply": {"attack": "nan_value"},
    "the server's own data": {
        "rule": "fltrust", "server": {"lr": 0.1, "root_images": 20, "evaluate_every": 1},
    },
    "votes under a transfer attack": VOTING | {
        "ensemble": {"paradigm": "same", "batch_size": 32, "probe_images": 8}, "transfer": TRANSFER,
    },
    "votes, augmented": VOTING | {
        "ensemble": {
            "paradigm": "same", "batch_size": 32, "augment": "paper", "checkpoint": "best"
        },
    },
    "one model under a transfer attack": ALONE | {
        "rule": "mean", "ensemble": {"paradigm": "fedavg"}, "transfer": TRANSFER,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_same_rounds_on_another_device(small, changes):
    changes = {"model": "mlp", "clients": 6, "byzantine": 1, "rule": "nnm+trimmed_mean",
               "attack": "alie", "rounds": 2} | changes  # fmt: skip
    e = from_dict({k: v for k, v in (small | changes).items() if v is not None})
    here = run_one(e)
    with Device():
        there = run_one(e, device=DEVICE.type)
    assert same(there, here), (there, here)


def same(there, here):
    """Compare rows number by number, however deep; times are the machine's."""
    if isinstance(here, dict):
        known = [key for key in here if not key.startswith("seconds")]
        return here.keys() == there.keys() and all(same(there[k], here[k]) for k in known)
    if isinstance(here, list):
        return len(here) == len(there) and all(map(same, there, here))
    if isinstance(here, float):
        return there == pytest.approx(here, rel=1e-3, abs=1e-3, nan_ok=True)
    return there == here


@pytest.mark.parametrize("name", [*RULES, *PREAGGREGATORS])
def test_every_rule_on_another_device(name):
    updates = torch.randn(12, 50, generator=torch.Generator().manual_seed(1))
    function = aggregate if name in RULES else preaggregate
    here = function(updates, spec_of(name, updates), generator=torch.Generator().manual_seed(0))
    with Device():
        moved = updates.to(DEVICE)
        found = function(moved, spec_of(name, moved), generator=torch.Generator().manual_seed(0))
        assert found.device == DEVICE
        torch.testing.assert_close(found.cpu(), here)


def test_operands_on_two_devices_are_an_error_there():
    with Device():
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="operands on"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + 1).cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_an_error(device):
    with pytest.raises(ConfigError, match="choose from cpu, cuda"):
        check_device(device)


def test_a_device_that_is_not_here_is_an_error():
    with pytest.raises(ConfigError, match=r"is not here: PyTorch sees \d+ GPU"):
        check_device("cuda:99")
