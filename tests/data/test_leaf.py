"""LEAF's formats, read from small files that are written as LEAF's own scripts write them."""

import json

import pytest
import torch

from fedrobust import simulate
from fedrobust.data import DataError, cut, load
from fedrobust.data.leaf import LETTERS

RULES = "the quality of mercy is not strain'd, it droppeth as the gentle rain from heaven. " * 4


def write(folder, users):
    """Write one file of users, {name: (x, y)}, as LEAF's split_data.py does."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in users.items()},
    }
    (folder / f"part_{len(list(folder.iterdir()))}.json").write_text(json.dumps(document))


def pictures(first, count):
    """Return digits as FEMNIST's json holds pictures: 784 values k / 255, and labels."""
    digits = load("digits")
    large = digits.train_images[first : first + count].repeat_interleave(4, 2)
    large = torch.nn.functional.pad(large.repeat_interleave(4, 3)[..., 2:30, 2:30], (0, 0))
    return (large.flatten(1).double() / 255).tolist(), digits.train_labels[
        first : first + count
    ].tolist()


def lines(start, count):
    """Return lines of 80 letters of a text, and the letter after each."""
    text = RULES[start:] + RULES
    return [text[i : i + 80] for i in range(count)], [text[i + 80] for i in range(count)]


@pytest.fixture
def femnist(tmp_path):
    """Three writers in two files; one of them has no test pictures."""
    train = tmp_path / "femnist" / "data" / "train"
    write(train, {"f0123_01": pictures(0, 30), "f0001_07": pictures(30, 50)})
    write(train, {"f0777_02": pictures(80, 40)})
    write(tmp_path / "femnist" / "data" / "test",
          {"f0777_02": pictures(200, 12), "f0001_07": pictures(230, 8)})  # fmt: skip
    return tmp_path


def test_femnist_is_read_pixel_by_pixel_and_writer_by_writer(femnist):
    found = load("femnist", root=femnist)
    assert found.train_images.shape == (120, 1, 28, 28) and found.classes == 62
    assert found.train_images.dtype == torch.uint8 and found.holds_images
    expected = load("digits").train_images[5, 0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(found.train_images[5, 0], expected[2:30, 2:30])
    shares = cut(found, "natural", clients=3, seed=1)
    assert sorted(map(len, shares)) == [30, 40, 50]
    writers = [int(found.train_clients[share[0]]) for share in shares]
    tested = {w: int((found.test_clients == w).sum()) for w in writers}
    sizes = {w: len(share) for w, share in zip(writers, shares, strict=True)}
    assert {sizes[w]: tested[w] for w in writers} == {30: 0, 40: 12, 50: 8}


def test_natural_writers_train_under_attack(femnist):
    setting = {"data": "femnist", "model": "linear", "partition": "natural", "clients": 3,
               "byzantine": 1, "rounds": 3, "seed": 1, "rule": "median", "attack": "sign_flip",
               "server": {"lr": 0.02, "evaluate_every": 1}}  # fmt: skip
    rows = simulate(setting, data_root=str(femnist)).runs[0][1]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["replies"] == 3


def test_shakespeare_is_read_letter_by_letter(tmp_path):
    for part, count in (("train", 40), ("test", 10)):
        roles = {"THE_MERCHANT_PORTIA": lines(0, count), "ALL_S_WELL_FOOL": lines(20, count)}
        write(tmp_path / "shakespeare" / part, roles)
    found = load("shakespeare", root=tmp_path)
    assert found.train_images.shape == (80, 80) and found.classes == 80 == len(LETTERS)
    assert found.holds_classes and not found.holds_images
    assert "".join(LETTERS[i] for i in found.train_images[3]) == RULES[3:83]
    assert LETTERS[int(found.train_labels[3])] == RULES[83]
    setting = {"data": "shakespeare", "model": "char_lstm", "partition": "natural", "clients": 2,
               "byzantine": 0, "rounds": 2, "seed": 1, "rule": "mean", "attack": "none",
               "metrics": ["accuracy", "client_accuracy"], "training": {"batch_size": 8},
               "server": {"lr": 0.5, "evaluate_every": 1}}  # fmt: skip
    rows = simulate(setting, data_root=str(tmp_path)).runs[0][1]
    assert rows[-1]["loss"] < rows[0]["loss"] and len(rows[-1]["client_accuracy"]) == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("femnist", "{", "not in LEAF's format.*JSONDecodeError"),
        ("femnist", "[]", "not in LEAF's format.*TypeError"),
        ("femnist", '{"users": []}', "not in LEAF's format.*KeyError: 'user_data'"),
        ("femnist", '{"user_data": {}}', "holds no examples"),
        ("femnist", '{"user_data": {"a": {"x": [[0.5]], "y": [1]}}}', "pictures of 784 values"),
        ("femnist", {"a": ([[0.5001] * 784], [1])}, "pictures of 784 values k / 255"),
        ("femnist", {"a": ([[2.0] * 784], [1])}, r"values in \[0, 1\]"),
        ("femnist", {"a": ([[0.0] * 784], [62])}, r"labels in 0..61"),
        ("femnist", {"a": ([[0.0] * 784], [1, 2])}, "as many x as y"),
        ("shakespeare", {"a": (["to be"], ["ab"])}, "one letter after each line"),
        ("shakespeare", {"a": (["to be é"], ["a"])}, "writes 'é', no letter of LEAF's"),
        ("shakespeare", {"a": (["to be", "to"], ["a", "b"])}, "not in LEAF's format"),
    ],
)
def test_files_that_are_not_leafs_say_what_is_wrong(tmp_path, name, text, words):
    if isinstance(text, dict):
        text = json.dumps({"user_data": {u: {"x": x, "y": y} for u, (x, y) in text.items()}})
    for part in ("train", "test"):
        (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / part / "all.json").write_text(text)
    with pytest.raises(DataError, match=words):
        load(name, root=tmp_path)


def test_absent_files_name_the_folders_and_the_script(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    for root in (None, tmp_path):
        with pytest.raises(DataError, match=r"femnist/data/train or femnist/train.*preprocess\.sh"):
            load("femnist", root=root)


def test_clients_of_training_and_test_have_one_numbering():
    from fedrobust.data import as_dataset

    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    train = x, y, ["b", "a", "c", "b"]
    found = as_dataset("mine", {"train": train, "test": (x[:2], y[:2], ["c", "b"])})
    assert found.train_clients.tolist() == [1, 0, 2, 1] and found.test_clients.tolist() == [2, 1]
