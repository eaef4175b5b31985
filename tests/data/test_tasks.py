"""Tables and text, clients of their own, what is measured of them, and the steps of FedOpt."""

import numpy as np
import pytest
import torch
import torchvision

from experiments.results import Results
from fedrobust import data, models, simulate
from fedrobust.data import DataError
from fedrobust.data.builtin import ALPHABET
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.training import StepState, take_step
from fedrobust.training.headline import ACCURACY, headline, promised
from fedrobust.training.tasks import METRICS

TEXT = {
    "data": "docstrings", "model": "char_cnn", "loss": "token_cross_entropy",
    "partition": "natural", "clients": 8, "byzantine": 2, "rounds": 2, "seed": 1,
    "rule": "trimmed_mean", "attack": "sign_flip",
    "training": {"mode": "update", "steps": 8, "batch_size": 16, "lr": 0.5},
    "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 1},
}  # fmt: skip


def test_the_text_is_what_follows_in_the_text():
    text = data.load("docstrings")
    assert text.shape == (32,) and text.classes == len(ALPHABET) == 66
    assert torch.equal(text.train_images[0, 1:], text.train_labels[0, :-1])
    assert text.train_clients.unique().tolist() == list(range(40))
    words = "".join(ALPHABET[i] for i in text.train_images[:40].flatten())
    assert "the " in words and len(text.train_labels) + len(text.test_labels) == 40 * 124


def test_a_character_sees_what_is_before_it_alone():
    text = data.load("docstrings")
    module = models.build_for("char_cnn", text, seed=0)
    one = text.train_images[:1]
    other = one.clone()
    other[0, 20:] = (other[0, 20:] + 1) % 66
    assert torch.allclose(module(one)[0, :20], module(other)[0, :20])
    assert not torch.allclose(module(one)[0, 20:], module(other)[0, 20:])


def test_text_is_learned_by_natural_clients():
    results = simulate(TEXT, metrics=["accuracy", "worst_client"])
    rows = results.runs[0][1]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5 and rows[-1]["accuracy"] > 0.15
    assert 0 <= rows[-1]["worst_client"] <= rows[-1]["accuracy"]


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_tables_are_learned(small, name):
    results = simulate(small, data=name, model="mlp", rounds=5, clients=8, byzantine=1)
    assert results.accuracy > 0.85


def test_a_regression_of_ours(small):
    assert data.load("diabetes").train_labels.std() == pytest.approx(1, abs=0.1)
    results = simulate(small, data="diabetes", model="linear", loss="huber:delta=1.0",
                       metrics=["r2"], rounds=30, server={"lr": 0.2, "momentum": 0.0})  # fmt: skip
    assert results.score > 0.2 and np.isnan(results.accuracy)


@pytest.mark.parametrize("name", ["mnist", "emnist", "cifar100", "svhn"])
def test_image_sets_come_through_torchvision(name, tmp_path, monkeypatch):
    """Their classes stand in here: the sets themselves are not at hand."""
    coloured = name in ("cifar100", "svhn")
    rng = np.random.default_rng(0)

    class Stand:
        def __init__(self, root, train=True, split=None, download=False):
            train = train and split != "test"
            shape = (20 if train else 10, *((32, 32, 3) if coloured else (28, 28)))
            pixels = rng.integers(0, 256, shape).astype("uint8")
            labels = np.arange(shape[0]) % 10
            self.data = pixels if coloured else torch.from_numpy(pixels)
            self.targets = labels.tolist() if coloured else torch.from_numpy(labels)
            if name == "svhn":
                self.data, self.labels = pixels.transpose(0, 3, 1, 2), labels

    monkeypatch.setattr(torchvision.datasets, name.upper(), Stand)
    found = data.load(name, root=tmp_path)
    assert found.holds_images and found.classes == 10 and len(found.test_labels) == 10
    assert found.shape == ((3, 32, 32) if coloured else (1, 28, 28))
    assert len(found.mean) == found.shape[0] and 0.4 < found.mean[0] < 0.6
    with pytest.raises(DataError, match="needs a data root"):
        monkeypatch.delenv("FEDROBUST_DATA", raising=False)
        data.load(name)


# ---- by client, over rounds


def test_a_clients_accuracy_is_that_on_classes_as_it_has_them(small):
    digits = data.load("digits")
    experiment = from_dict(small | {"partition": {"name": "dirichlet", "alpha": 0.3}})
    counts = data.examples_of(experiment, digits)
    assert counts.shape == (10, len(digits.test_labels))
    assert torch.allclose(counts.sum(1), torch.ones(10).double())
    share = data.cut(digits, experiment.partition, clients=10, seed=3)[0]
    held = digits.train_labels[share].bincount(minlength=10).double()
    found = torch.stack([counts[0, digits.test_labels == c].sum() for c in range(10)])
    assert torch.allclose(found, held / held.sum())
    right = torch.eye(10)[digits.test_labels]
    right[digits.test_labels == 4] = torch.eye(10)[5]  # all fours are taken for fives
    by_client = METRICS["client_accuracy"].compute(right, digits.test_labels, counts)
    assert by_client[0] == pytest.approx(1 - float(held[4] / held.sum()))
    worst = METRICS["worst_client"].compute(right, digits.test_labels, counts)
    assert worst == min(by_client)


def test_natural_clients_are_measured_on_their_own_test_examples():
    text = data.load("docstrings")
    experiment = from_dict(TEXT | {"clients": 40})
    counts = data.examples_of(experiment, text)
    assert torch.equal((counts > 0).int().argmax(0), text.test_clients)
    with pytest.raises(ConfigError, match="metrics by client need classes"):
        simulate(TEXT, partition="iid", metrics=["worst_client"])


def test_a_validation_set_is_nobodys(small):
    digits = data.load("digits")
    left = data.set_aside(digits, 0.25, seed=1)
    count = len(digits.train_labels)
    assert len(left.validation[1]) == round(0.25 * count)
    assert len(left.train_labels) + len(left.validation[1]) == count
    whole = torch.cat([left.train_images, left.validation[0]]).flatten(1).long().sum(1)
    assert torch.equal(whole.sort().values, digits.train_images.flatten(1).long().sum(1).sort()[0])
    results = simulate(small, server={"lr": 0.5, "validation": 0.25}, metrics=["worst_class"])
    last = results.runs[0][1][-1]
    assert {"validation_loss", "validation_worst_class", "loss", "worst_class"} <= set(last)
    assert last["validation_loss"] != last["loss"]
    with pytest.raises(DataError, match="leaves a side empty"):
        data.set_aside(digits, 1e-9, seed=1)


def test_how_steady_a_run_ended_and_when_it_was_there(small):
    (experiment,) = (simulate(small, rounds=1).runs[0][0],)
    values = [0.1, 0.6, 0.4, 0.7, 0.8, 0.7]
    rows = [{"round": i, "accuracy": v, "loss": 1.0} for i, v in enumerate(values)]
    results = Results(((experiment, rows),))
    steady = results.stability(last=3).iloc[0]
    assert (steady["lowest"], steady["highest"]) == (0.7, 0.8)
    assert steady["std"] == pytest.approx(np.std([0.7, 0.8, 0.7], ddof=1))
    assert results.reached(0.6)["round"].tolist() == [1]
    assert results.reached(0.6, hold=2)["round"].tolist() == [3]
    assert results.reached(0.9)["round"].isna().all()


def test_what_a_run_will_be_shown_by():
    assert promised("cross_entropy", ()) == promised("mine", ()) == ACCURACY
    assert promised("mse", ()).column == "loss" and promised("mse", ("r2",)).column == "r2"
    assert headline(("r2",), {"accuracy", "r2"}) == ACCURACY
    assert headline(("mae",), {"mae", "loss"}).best == "min"


# ---- the steps of FedOpt


def by_hand(name, gradients, *, lr, beta1, beta2, tau):
    """Algorithm 2 of Reddi et al., one coordinate; a gradient is minus their Delta."""
    x, m, v = 0.0, 0.0, tau**2
    for g in gradients:
        delta = -g
        m = beta1 * m + (1 - beta1) * delta
        square = delta * delta
        if name == "adagrad":
            v = v + square
        elif name == "yogi":
            v = v - (1 - beta2) * square * np.sign(v - square)
        else:
            v = beta2 * v + (1 - beta2) * square
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_the_steps_of_fedopt_are_those_of_the_paper(name):
    gradients, settings = [0.5, -0.2, 0.9, 0.9], {"tau": 1e-2, "beta1": 0.9}
    if name != "adagrad":
        settings["beta2"] = 0.8
    model, state = torch.zeros(1), StepState()
    for g in gradients:
        model, state = take_step(
            model, torch.tensor([g]), state, optimizer={"name": name, **settings}, lr=0.1,
            momentum=0.9, schedule="constant", warmup=0, shapes=[(1,)],
        )  # fmt: skip
    expected = by_hand(name, gradients, lr=0.1, **({"beta2": 0.0} | settings))
    assert float(model) == pytest.approx(expected, rel=1e-4)
    assert state.step == 4 and len(state.moments) == 2


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_fedopt_trains_under_attack_and_goes_on(small, name):
    server = {"lr": 0.03, "optimizer": name, "evaluate_every": 1}
    assert simulate(small, server=server, rounds=6, attack="alie").accuracy > 0.5


def test_settings_of_fedopt_are_checked_before_the_start(small):
    with pytest.raises(ConfigError, match=r"tau > 0, got 0\.9, 0\.99 and 0"):
        from_dict(small | {"server": {"optimizer": {"name": "adam", "tau": 0.0}}})
    with pytest.raises(ValueError, match="squares are finite"):
        take_step(torch.zeros(2), torch.full((2,), 1e30), StepState(), optimizer="adam", lr=0.1,
                  momentum=0.0, schedule="constant", warmup=0, shapes=[(2,)])  # fmt: skip
