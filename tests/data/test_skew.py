"""Clients that differ in how much they have, or in what their inputs are like."""

import itertools

import pytest
import torch

from fedrobust.data import DataError, cut, load, partition
from fedrobust.data.skew import QuantityPartitioner, feature_of


@pytest.mark.parametrize("alpha", [1e-300, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("clients", [1, 7, 50])
def test_drawn_sizes_add_up_and_leave_nobody_without(alpha, clients):
    labels = torch.zeros(503, dtype=torch.int64)
    spec = {"name": "quantity", "alpha": alpha, "minimum": 3}
    shares = partition(labels, spec, clients=clients, seed=4)
    assert min(map(len, shares)) >= 3
    assert torch.cat(shares).sort().values.tolist() == list(range(503))


def test_small_alpha_gives_unequal_sizes_of_one_distribution():
    dataset = load("fashionmnist-sample")
    counts = {a: QuantityPartitioner(20, a, 1, 5).counts(8000) for a in (0.1, 1.0, 100.0)}
    spread = [max(found) / min(found) for found in counts.values()]
    assert spread[0] > 10 * spread[1] > 100 > 3 > spread[2]
    shares = cut(dataset, {"name": "quantity", "alpha": 1.0}, clients=20, seed=5)
    large = [share for share in shares if len(share) > 400]
    for share in large:  # the classes are as in the whole: a tenth each, within five deviations
        held = dataset.train_labels[share].bincount(minlength=10) / len(share)
        assert (held - 0.1).abs().max() < 5 * (0.09 / len(share)) ** 0.5
    assert len(large) > 3


@pytest.mark.parametrize("name", ["fashionmnist-sample", "breast_cancer", "docstrings"])
def test_a_feature_divides_the_clients(name):
    dataset = load(name)
    column = {"docstrings": 2, "breast_cancer": 3}.get(name, 0)
    values = feature_of(dataset.train_images, column).double()
    spec = {"name": "feature", "column": column}
    shares = cut(dataset, spec, clients=5, seed=2)
    bounds = [(float(values[s].min()), float(values[s].max())) for s in shares]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(bounds))
    mixed = cut(dataset, spec | {"gamma": 1.0}, clients=5, seed=2)
    means = torch.stack([values[s].mean() for s in mixed])
    assert means.std() < 0.2 * values.std(), "gamma = 1 is iid"


def test_brightness_is_counted_without_rounding():
    pictures = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert feature_of(pictures, 0).tolist() == [int(p.long().sum()) for p in pictures]
    assert feature_of(torch.tensor([[1, 2, 1], [3, 3, 3]]), 1).tolist() == [2, 0]


def test_regressions_may_be_divided_by_size_or_feature():
    dataset = load("diabetes")
    for spec in ({"name": "feature", "column": 2}, {"name": "quantity", "alpha": 0.5}):
        shares = cut(dataset, spec, clients=6, seed=1)
        assert sum(map(len, shares)) == len(dataset.train_labels)


@pytest.mark.parametrize(
    ("data", "spec", "words"),
    [
        ("digits", {"name": "quantity", "alpha": 0.0}, "a finite alpha > 0, got 0.0"),
        ("digits", {"name": "quantity", "alpha": float("inf")}, "a finite alpha > 0, got inf"),
        ("digits", {"name": "quantity", "alpha": 1.0, "minimum": 0}, "minimum of at least 1"),
        ("digits", {"name": "quantity", "alpha": 1.0, "minimum": 500}, "needs 5000 examples"),
        ("digits", {"name": "feature", "gamma": -0.1}, r"gamma in \[0, 1\], got -0.1"),
        ("digits", {"name": "feature", "column": 2}, "sorts images by brightness, got column=2"),
        ("wine", {"name": "feature", "column": 13}, r"got 13 of inputs of shape \(13,\)"),
    ],
)
def test_settings_that_mean_nothing(data, spec, words):
    with pytest.raises(DataError, match=words):
        cut(load(data), spec, clients=10, seed=1)


def test_a_feature_needs_the_inputs():
    with pytest.raises(DataError, match="needs the inputs beside the labels"):
        partition(torch.zeros(20, dtype=torch.int64), "feature", clients=2, seed=1)
