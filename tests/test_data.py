import pytest
import torch

from fedrobust.data import DATASETS, PARTITIONERS, DataError, load, partition
from fedrobust.spec import SpecError

SPECS = {
    "iid": "iid",
    "dirichlet": {"name": "dirichlet", "alpha": 0.5},
    "shards": "shards",
    "pathological": "pathological",
    "similarity": {"name": "similarity", "gamma": 0.5},
}


@pytest.fixture(scope="module")
def labels():
    return load("fashionmnist-sample").train_labels


def test_the_sample_is_balanced_and_needs_no_root():
    sample = load("fashionmnist-sample")
    assert sample.train_images.shape == (8000, 1, 28, 28)
    assert sample.train_images.dtype == torch.uint8
    assert sample.train_labels.bincount().tolist() == [800] * 10
    assert sample.test_labels.bincount().tolist() == [150] * 10
    assert sample.shape == (1, 28, 28)


def test_the_sample_is_cut_from_the_full_set(data_root):
    full, sample = load("fashionmnist", root=data_root), load("fashionmnist-sample")
    nines = full.train_images[full.train_labels == 9][:800]
    assert torch.equal(sample.train_images[sample.train_labels == 9], nines)
    first = full.test_images[full.test_labels == 0][:150]
    assert torch.equal(sample.test_images[sample.test_labels == 0], first)


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [("fashionmnist", 60000, (1, 28, 28)), ("cifar10", 50000, (3, 32, 32))],
)
def test_full_sets(data_root, name, count, shape):
    full = load(name, root=data_root)
    assert len(full.train_images) == len(full.train_labels) == count
    assert (full.shape, len(full.test_labels), full.classes) == (shape, 10000, 10)


def test_normalisation_constants_are_those_of_the_data(data_root):
    for name in ("fashionmnist", "cifar10"):
        full = load(name, root=data_root)
        pixels = full.train_images[:20000].float() / 255
        assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(full.mean), atol=5e-3)
        assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(full.std), atol=5e-3)


def test_unknown_set():
    with pytest.raises(DataError, match="did you mean 'fashionmnist'"):
        load("fashonmnist")


def test_absent_set_names_the_options(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    for root in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"--data-root.*--download.*fashionmnist-sample"):
            load("cifar10", root=root)


def test_every_partitioner_is_tried():
    assert set(SPECS) == set(PARTITIONERS)
    assert len(DATASETS) == 4


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_shares_are_disjoint_seeded_and_not_empty(labels, spec):
    shares = partition(labels, spec, clients=20, seed=5)
    together = torch.cat(shares)
    assert len(shares) == 20
    assert min(map(len, shares)) > 0
    assert len(together.unique()) == len(together) <= len(labels)
    again = partition(labels, spec, clients=20, seed=5)
    other = partition(labels, spec, clients=20, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(shares, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(shares, other, strict=True))


def test_small_alpha_is_more_skewed(labels):
    def skew(alpha):
        shares = partition(labels, {"name": "dirichlet", "alpha": alpha}, clients=10, seed=1)
        tops = [labels[s].bincount(minlength=10).max() / len(s) for s in shares]
        return sum(map(float, tops)) / len(tops)

    assert skew(0.1) > skew(0.5) > skew(100.0)


def test_pathological_clients_hold_two_classes(labels):
    for share in partition(labels, "pathological", clients=20, seed=1):
        assert len(labels[share].unique()) == 2


def test_fewer_images_than_clients(labels):
    with pytest.raises(DataError, match="over 30 clients needs as many images, got 20"):
        partition(labels[:20], "iid", clients=30, seed=1)


def test_wrong_partition_settings(labels):
    with pytest.raises(SpecError, match="did you mean 'dirichlet'"):
        partition(labels, "dirichlt", clients=3, seed=1)
    with pytest.raises(SpecError, match="needs the parameter 'alpha'"):
        partition(labels, "dirichlet", clients=3, seed=1)
    with pytest.raises(DataError, match="alpha > 0"):
        partition(labels, {"name": "dirichlet", "alpha": -1}, clients=3, seed=1)
