"""Updates in files: the numbers of ``aggregate`` in memory, at most two passes, nothing trusted."""

import inspect
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from experiments.aggregate_command import aggregate_files
from experiments.cli import app
from experiments.update_files import FileError, UpdateFiles
from fedrobust.aggregation import aggregate, streamed
from fedrobust.aggregation.streamed import BY_PRODUCTS, Dense, Streamed, aggregate_streamed
from fedrobust.aggregation.tables import RULE_RECORDS
from fedrobust.seeds import generator
from fedrobust.spec import InputError, SpecError

GIVEN = {"f": 2, "tau": 10.0, "bound": 40.0, "clusters": 3, "m": 5, "threshold": 3, "groups": 5}


def spec_of(name):
    """A rule with a value for whatever it asks of its user."""
    needed = [k for k, p in RULE_RECORDS[name].settings.items() if p.default is inspect._empty]
    return {"name": name} | {key: GIVEN[key] for key in needed if key in GIVEN}


@pytest.fixture
def updates():
    source = torch.Generator().manual_seed(3)
    rows = torch.randn(15, 5003, generator=source) * torch.linspace(0.5, 2, 15)[:, None]
    rows += 3 * torch.randn(5003, generator=source)
    rows[:2] *= -4
    return rows


STREAMED = [n for n, r in RULE_RECORDS.items() if r.coordinate_wise or n in BY_PRODUCTS]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("damaged", [False, True])
def test_each_streamed_rule_gives_the_numbers_of_memory(name, damaged, updates, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 7001)
    if damaged:
        updates[4, 4000] = float("nan")
        updates[9, 0] = float("inf")
    spec, found = spec_of(name), Streamed()
    whole = aggregate(updates, spec, generator=generator(1, "rule"))
    parts = aggregate_streamed(Dense(updates), spec, generator=generator(1, "rule"), found=found)
    assert torch.allclose(torch.cat(list(parts)), whole, rtol=1e-5, atol=1e-5)
    assert found.passes <= 2 and found.set_aside == ([4, 9] if damaged else [])


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_rule_by_columns_reads_once_where_parts_may_be_void(name, damaged, updates, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 7001)
    if damaged:
        updates[4, 4000] = float("nan")
    whole, found = aggregate(updates, spec_of(name)), Streamed()
    parts = list(aggregate_streamed(Dense(updates), spec_of(name), found=found, voidable=True))
    valid = parts[parts.index(None) + 1 :] if damaged else parts
    assert torch.allclose(torch.cat(valid), whole, rtol=1e-5, atol=1e-5)
    assert found.passes == 1 + damaged and parts.count(None) == damaged


def test_there_are_streamed_rules_and_the_others_are_refused_by_name(updates):
    assert len(STREAMED) >= 18
    for name in set(RULE_RECORDS) - set(STREAMED):
        with pytest.raises(SpecError, match=f"rule '{name}' needs whole rows|needs the parameter"):
            aggregate_streamed(Dense(updates), spec_of(name))
    with pytest.raises(SpecError, match="pre-aggregator 'foundation' needs whole rows"):
        aggregate_streamed(Dense(updates), "median", pre=["foundation"])
    with pytest.raises(ValueError, match="krum with f=7 needs at least 17 updates, got 15"):
        aggregate_streamed(Dense(updates), {"name": "krum", "f": 7})


@pytest.mark.parametrize("rule", ["trimmed_mean", "krum", "geometric_median"])
@pytest.mark.parametrize(
    "pre", [{"name": "nnm", "f": 2}, {"name": "clip", "bound": 40.0}, {"name": "arc", "f": 2},
            {"name": "bucketing", "size": 2}],
    ids=lambda spec: spec["name"],
)  # fmt: skip
def test_pre_aggregators_are_streamed(rule, pre, updates, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 7001)
    spec = {"name": rule} | ({"f": 2} if rule != "geometric_median" else {})
    whole = aggregate(updates, spec, pre=[pre], generator=generator(1, "rule"))
    parts = aggregate_streamed(Dense(updates), spec, pre=[pre], generator=generator(1, "rule"))
    assert torch.allclose(torch.cat(list(parts)), whole, rtol=1e-5, atol=1e-5)


def test_close_rows_far_from_zero_keep_their_distances():
    rows = 30 + 1e-3 * torch.randn(12, 4001, generator=torch.Generator().manual_seed(1))
    rows[0] += 0.01
    for spec in ({"name": "krum", "f": 2}, {"name": "multi_krum", "f": 2}, "geometric_median"):
        parts = torch.cat(list(aggregate_streamed(Dense(rows), spec)))
        assert torch.allclose(parts, aggregate(rows, spec), rtol=0, atol=1e-5)


def write(folder, updates, kind):
    paths = []
    for i, row in enumerate(updates):
        path = folder / f"client{i}{kind}"
        if kind == ".npy":
            np.save(path, row.numpy())
        else:
            tensors = {"b": row[:3], "a.weight": row[3:5003].view(50, 100).half()}
            save_file(tensors if i % 2 else dict(reversed(tensors.items())), path)
        paths.append(path)
    return paths


def test_files_of_both_kinds_are_read_and_written(tmp_path, updates):
    paths = write(tmp_path, updates, ".npy")
    told = aggregate_files(paths, "nnm+trimmed_mean:f=2", tmp_path / "out.npy")
    whole = aggregate(updates, {"name": "trimmed_mean", "f": 2}, pre=[{"name": "nnm", "f": 2}])
    assert np.allclose(np.load(tmp_path / "out.npy"), whole, rtol=1e-5, atol=1e-5)
    assert told["passes"] == 2 and told["bytes_read"] == 2 * 15 * 5003 * 4
    paths = write(tmp_path, updates, ".safetensors")
    told = aggregate_files(paths, "krum:f=2", tmp_path / "out.safetensors")
    chosen = [path for path, weight in told["weights"].items() if weight == 1]
    assert len(chosen) == 1
    out, expected = load_file(tmp_path / "out.safetensors"), load_file(chosen[0])
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[key], expected[key]) for key in out)
    assert out["a.weight"].dtype == torch.float16 and out["a.weight"].shape == (50, 100)


def test_the_command_says_what_it_found(tmp_path, updates):
    paths = write(tmp_path, updates, ".npy")
    output = str(tmp_path / "out.npy")
    call = ["aggregate", *map(str, paths), "--rule", "median", "--output", output]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n"] == 15
    assert np.array_equal(np.load(output), aggregate(updates, "median").numpy())


def test_bad_files_have_their_sentence_and_leave_nothing(tmp_path, updates):
    paths, output = write(tmp_path, updates[:5], ".npy"), tmp_path / "out.npy"

    def refused(match, files=paths, rule="median", out=output):
        with pytest.raises(InputError, match=match):
            aggregate_files(files, rule, out)
        assert not list(tmp_path.glob("out*"))

    refused("there is no file of updates", [])
    refused("must end with .npy", out=tmp_path / "out.safetensors")
    refused("is one of the updates", out=paths[0])
    refused("cannot read .*No such file", [*paths, tmp_path / "none.npy"])
    refused("files, got", [tmp_path / "a.bin"])
    refused("needs whole rows in memory", rule="dnc:f=1")
    refused("krum with f=2 needs at least 7 updates, got 5", rule="krum:f=2")
    (tmp_path / "short.npy").write_bytes(paths[0].read_bytes()[:-4])
    refused("ends before its last number", [*paths, tmp_path / "short.npy"])
    np.save(tmp_path / "other.npy", np.zeros(7, dtype=np.float32))
    refused("not like the first file: the array is F32", [*paths, tmp_path / "other.npy"])
    np.save(tmp_path / "whole.npy", np.zeros(5003, dtype=np.int64))
    refused("holds int64", [*paths, tmp_path / "whole.npy"])
    for row in range(5):
        np.save(paths[row], np.full(5003, np.nan, dtype=np.float32))
    refused("none of the 5 updates is finite")


@pytest.mark.parametrize(
    "head",
    [b"", b"{", struct.pack("<Q", 1 << 60), struct.pack("<Q", 4) + b"[1, ",
     struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 12}'],
)  # fmt: skip
def test_a_damaged_header_is_refused(tmp_path, head):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(head)
    with pytest.raises(FileError, match=r"no safetensors file|holds no numbers"):
        UpdateFiles([path])


def test_a_header_that_lies_about_its_bytes_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(FileError, match="in 8 bytes"):
        UpdateFiles([path])
