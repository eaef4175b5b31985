"""Members of an ensemble with a loss and metrics of a user's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedrobust import data, simulate
from fedrobust.experiment.load import from_dict
from fedrobust.plugins import Part, installed
from fedrobust.training.tasks import class_accuracy

PLAN = {"paradigm": "same", "batch_size": 32, "validation": 0.2}
SETTING = {"data": "digits", "model": "linear", "clients": 3, "byzantine": 0, "rounds": 3,
           "seed": 2, "attack": "none", "ensemble": PLAN}  # fmt: skip


def scaled(outputs, targets, *, by=1.0):
    return by * F.cross_entropy(outputs, targets)


def rows_of(**changes):
    rows = simulate(SETTING, **changes).runs[0][1]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_loss_that_is_the_usual_one_gives_the_usual_members():
    usual, own = rows_of(), rows_of(loss=scaled)
    for expected, found in zip(usual, own, strict=True):
        for client, member in expected["progress"].items():  # sums over the set, or over batches
            assert found["progress"][client] == pytest.approx(member, rel=1e-5)
        assert found.get("accuracy") == expected.get("accuracy")


def test_members_minimise_the_loss_that_they_are_given():
    with installed(Part("loss", "scaled", scaled, "this test")):
        found = {by: rows_of(loss=f"scaled:by={by}") for by in (1e-6, 1.0)}
    still, taught = (rows[-1] for rows in found.values())
    assert still["accuracy"] < 0.3 < 0.6 < taught["accuracy"]
    assert still["train_loss"] < 1e-5 < taught["train_loss"]
    held = still["progress"]["0"]
    assert 0 < held["held_loss"] < 1e-5, "the validation part is measured by it too"


def test_metrics_are_of_the_votes_scores():
    rows = rows_of(metrics={"by_class": class_accuracy, "share": lambda o, t: len(o) / len(t)})
    last, labels = rows[-1], data.load("digits").test_labels
    counts = labels.bincount(minlength=10).double()
    total = float((torch.tensor(last["by_class"]) * counts).sum() / counts.sum())
    assert total == pytest.approx(last["accuracy"], abs=1e-5) and last["share"] == 1
    again = from_dict(SETTING | {"metrics": ["worst_class"], "loss": "cross_entropy:smoothing=0.1"})
    assert again.to_dict()["metrics"] == ["worst_class"]
    assert again.to_dict()["loss"] == {"name": "cross_entropy", "smoothing": 0.1}


def test_a_loss_goes_with_attackers_of_the_vote_and_with_own_members():
    table = SETTING | {
        "ensemble": PLAN | {"test_images": 40},
        "transfer": {"attacks": ["mi_fgsm"], "surrogates": ["linear"], "epochs": 1, "images": 20,
                     "steps": 2},
    }  # fmt: skip

    def own(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    rows = simulate(table, loss=scaled, model=own).runs[0][1]
    assert rows[-1]["accuracy"] > 0.3 and "mi_fgsm" in rows[-1]["votes"]["soft"]
