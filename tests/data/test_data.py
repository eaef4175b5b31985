from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedrobust.data import DATASETS, PARTITIONERS, DataError, load, partition
from fedrobust.data.dirichlet import DirichletPartitioner, dirichlet
from fedrobust.data.given import digest_of
from fedrobust.data.own import load_own
from fedrobust.data.partitions import iid
from fedrobust.spec import SpecError

SPECS = {
    "iid": "iid",
    "dirichlet": {"name": "dirichlet", "alpha": 0.5},
    "shards": "shards",
    "pathological": "pathological",
    "similarity": {"name": "similarity", "gamma": 0.5},
    "sizes": {"name": "sizes", "shares": [10.0, 0.1, *[1.0] * 18], "gamma": 0.5},
    "quantity": {"name": "quantity", "alpha": 0.3},
    "feature": {"name": "feature", "gamma": 0.2},
}


@pytest.fixture(scope="module")
def labels():
    return load("fashionmnist-sample").train_labels


@pytest.fixture(scope="module")
def pictures():
    return load("fashionmnist-sample").train_images


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
    assert set(SPECS) | {"natural"} == set(PARTITIONERS), "natural needs owners: see test_yours"
    images = {name for name in DATASETS if f"{name}-validation" in DATASETS}
    tables = {"breast_cancer", "wine", "diabetes", "docstrings"} - images
    leaf = {"femnist", "shakespeare"}
    assert set(DATASETS) == images | {f"{name}-validation" for name in images} | tables | leaf


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_shares_are_disjoint_seeded_and_not_empty(labels, pictures, spec):
    shares = partition(labels, spec, clients=20, seed=5, inputs=pictures)
    together = torch.cat(shares)
    assert len(shares) == 20
    assert min(map(len, shares)) > 0
    assert len(together.unique()) == len(together) <= len(labels)
    again = partition(labels, spec, clients=20, seed=5, inputs=pictures)
    other = partition(labels, spec, clients=20, seed=6, inputs=pictures)
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


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_sites_have_the_sizes_that_were_stated(labels, gamma):
    spec = {"name": "sizes", "shares": [0.5, 0.006, *[0.494 / 8] * 8], "gamma": gamma}
    shares = partition(labels, spec, clients=10, seed=1)
    assert [len(s) for s in shares] == pytest.approx([4000, 48, *[494] * 8], abs=2)
    assert len(torch.cat(shares).unique()) == len(labels)
    if gamma == 0:
        assert max(len(labels[s].unique()) for s in shares[1:]) <= 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shares": [0.5, 0.5]}, "one share for each of 3 clients, got 2"),
        ({"shares": [0.5, 0.5, 0.0]}, "shares above 0"),
        ({"shares": [0.5, 0.5, "x"]}, "shares above 0"),
        ({"shares": 3}, "for each of 3 clients, got 3"),
        ({"shares": [1.0, 1.0, 1.0], "gamma": 2.0}, r"gamma in \[0, 1\], got 2.0"),
    ],
)
def test_sizes_that_mean_nothing(labels, given, words):
    with pytest.raises(DataError, match=words):
        partition(labels, {"name": "sizes", **given}, clients=3, seed=1)


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


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 0.05, 1e6])
@pytest.mark.parametrize("clients", [2, 20, 60])
def test_a_dirichlet_partition_always_exists(alpha, clients):
    labels = np.arange(600) % 10
    for minimum, seed in ((1, 0), (5, 1), (10, 2)):
        shares = DirichletPartitioner(clients, alpha, minimum, seed).split(labels)
        assert sorted(place for share in shares for place in share) == list(range(600))
        assert min(map(len, shares)) >= minimum
        assert shares == DirichletPartitioner(clients, alpha, minimum, seed).split(labels)


@pytest.mark.filterwarnings("error")
def test_no_warning_of_another_package_and_infinity_is_iid():
    labels = torch.arange(300) % 10
    tiny = partition(labels, {"name": "dirichlet", "alpha": 0.001}, clients=50, seed=3)
    assert min(map(len, tiny)) >= 1
    fair = partition(labels, {"name": "dirichlet", "alpha": float("inf")}, clients=50, seed=3)
    for share, equal in zip(fair, partition(labels, "iid", clients=50, seed=3), strict=True):
        assert torch.equal(share, equal)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0])
@pytest.mark.parametrize("minimum", [1, 30])
def test_dirichlet_is_flowers_own_where_that_one_finds_a_partition(alpha, minimum):
    from datasets import Dataset as Table
    from flwr_datasets.partitioner import DirichletPartitioner as FlowersPartitioner

    labels = torch.arange(900) % 10
    reference = FlowersPartitioner(
        num_partitions=10, partition_by="label", alpha=alpha, min_partition_size=minimum, seed=4
    )
    reference.dataset = Table.from_dict({"label": labels.tolist(), "index": range(len(labels))})
    ours = dirichlet(alpha=alpha, clients=10, seed=4, minimum=minimum).split(labels.numpy())
    for k, share in enumerate(ours):
        assert share == reference.load_partition(k)["index"][:]


def test_iid_is_flowers_own():
    from datasets import Dataset as Table
    from flwr_datasets.partitioner import IidPartitioner

    for clients in (1, 7, 100):
        reference = IidPartitioner(num_partitions=clients)
        reference.dataset = Table.from_dict({"index": range(103)})
        ours = iid(clients=clients, seed=1).split(torch.zeros(103).numpy())
        for k, share in enumerate(ours):
            assert share.tolist() == reference.load_partition(k)["index"][:]


def test_a_minimum_that_the_images_do_not_allow_is_refused(labels):
    spec = {"name": "dirichlet", "alpha": 1.0, "minimum": len(labels)}
    with pytest.raises(DataError, match=rf"over 2 clients needs {2 * len(labels)} images"):
        partition(labels, spec, clients=2, seed=1)


def write_pictures(folder, pictures):
    for label, picture in enumerate(pictures):
        (folder / str(label)).mkdir()
        picture.save(folder / str(label) / "a.png")


def test_pictures_of_every_depth_keep_their_brightness(tmp_path):
    levels = np.linspace(0, 1, 64).reshape(8, 8)
    eight = np.round(levels * 255).astype(np.uint8)
    sixteen = np.round(levels * 65535).astype(np.uint16)
    grey = Image.fromarray(eight)
    black = grey.point(lambda value: 255 * (value > 127), "1")
    depths = [grey, Image.fromarray(sixteen), grey.convert("RGB"), grey.convert("LA"), black]
    write_pictures(tmp_path, depths)
    images = load_own(tmp_path, name="digits").train_images[:, 0].int()
    for k in (1, 2, 3):
        assert int((images[k] - torch.from_numpy(eight).int()).abs().max()) <= 1, k
    assert set(images[4].flatten().tolist()) == {0, 255}


def test_a_picture_whose_range_is_not_known_is_refused_by_name(tmp_path):
    (tmp_path / "0").mkdir()
    Image.new("F", (8, 8), 0.5).save(tmp_path / "0" / "a.tiff")
    (tmp_path / "0" / "a.tiff").rename(tmp_path / "0" / "a.png")  # Pillow looks inside
    with pytest.raises(DataError, match=r"a\.png' has pixels of mode 'F'"):
        load_own(tmp_path, name="digits")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1.7], "the label 0.5, needs whole numbers"),
        ([1, float("nan")], "the label nan"),
        (["0", "1"], "labels of <U1"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, labels, words):
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.array(labels))
    with pytest.raises(DataError, match=words):
        load_own(tmp_path / "own.npz", name="digits")
    np.savez(tmp_path / "own.npz", images=images, labels=np.array([0.0, 1.0]))
    assert load_own(tmp_path / "own.npz", name="digits").train_labels.tolist() == [0, 1]
    np.savez(tmp_path / "own.npz", images=images.astype(float), labels=np.array([0, 1]))
    with pytest.raises(DataError, match="images of float64, needs uint8"):
        load_own(tmp_path / "own.npz", name="digits")


def test_a_digest_tells_every_part_of_a_set_but_its_name():
    """Runs that continue compare it: mean, spread and validation were left out."""
    whole = load("digits")
    first = whole.train_images[:2], whole.train_labels[:2]
    base = replace(whole, validation=first)
    changes = [
        {"mean": (0.5,)},
        {"std": (0.5,)},
        {"classes": 11},
        {"validation": None},
        {"validation": (first[0] + 1, first[1])},
        {"validation": (first[0], first[1] + 1)},
        {"test_labels": whole.test_labels + 1},
        {"train_clients": whole.train_labels},
    ]
    found = [digest_of(base), *(digest_of(replace(base, **change)) for change in changes)]
    assert len(set(found)) == 1 + len(changes)
    assert digest_of(replace(base, name="other")) == found[0] == digest_of(base)
