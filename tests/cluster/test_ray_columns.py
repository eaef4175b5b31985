"""Files read by the workers of a cluster, each some of the columns; here without a cluster."""

from contextlib import nullcontext

import pytest
import torch
from fake_ray import FakeRay
from safetensors.torch import load_file, save_file

from experiments.aggregate_command import aggregate_files
from experiments.cluster import columns
from experiments.cluster.columns import FileShard, cut
from experiments.cluster.pool import ClusterError
from experiments.update_files import UpdateFiles
from fedrobust.spec import InputError


@pytest.fixture
def cluster(monkeypatch):
    def made(**settings):
        ray = FakeRay(**settings)
        monkeypatch.setattr(columns, "connected", lambda address: nullcontext(ray))
        return ray

    monkeypatch.setattr(columns, "LEAST", 100)
    monkeypatch.setattr("fedrobust.aggregation.streamed.BLOCK", 2000)
    monkeypatch.setenv("FEDROBUST_CORES", "0")
    return made


@pytest.fixture
def models(tmp_path):
    """Seven adapters with tensors of two types, in another order in one of the files."""
    paths = []
    for client in range(7):
        source = torch.Generator().manual_seed(client)
        tensors = {
            "a.weight": torch.randn(30, 41, generator=source),
            "b.bias": torch.randn(7, generator=source).to(torch.bfloat16),
            "c.weight": torch.randn(501, generator=source) * (1 + 9 * (client == 3)),
        }
        names = sorted(tensors, reverse=client == 5)
        paths.append(tmp_path / f"client{client}.safetensors")
        save_file({name: tensors[name] for name in names}, paths[-1])
    return paths


@pytest.mark.parametrize("rule", ["krum:f=2", "trimmed_mean:f=2", "nnm+median:f=2", "rfa"])
def test_workers_write_what_one_process_writes(rule, cluster, models, tmp_path):
    ray = cluster(cores=2)
    if rule == "nnm+median:f=2":
        rule = "nnm:f=2+median"
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    told = aggregate_files(models, rule, here)
    found = aggregate_files(models, rule, there, ray="local")
    one, other = load_file(here), load_file(there)
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert torch.allclose(other[name].float(), tensor.float(), rtol=1e-5, atol=1e-5)
    assert found["read_by"].startswith("2 workers: ")
    assert found["bytes_read"] == 2 * 7 * (4 * (30 * 41 + 501) + 2 * 7)
    assert {k: found[k] for k in ("rule", "n", "d", "set_aside")} == {
        k: told[k] for k in ("rule", "n", "d", "set_aside")
    }
    assert {number for number, method, _ in ray.calls if method == "look"} == {0, 1}


def test_a_reader_that_dies_costs_its_shard_a_second_reading(cluster, models, tmp_path):
    calls = []

    def dies(actor, method):
        calls.append(method)
        return (method, calls.count(method)) in {("look", 3), ("parts", 2)}

    ray = cluster(cores=2, dies=dies)
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    aggregate_files(models, "trimmed_mean:f=2", here)
    aggregate_files(models, "trimmed_mean:f=2", there, ray="local")
    assert len(ray.actors) > 2
    assert here.read_bytes() == there.read_bytes()


def test_too_many_deaths_and_refusals_leave_no_file(cluster, models, tmp_path):
    cluster(cores=2, dies=lambda actor, method: method == "parts")
    out = tmp_path / "out.safetensors"
    with pytest.raises(ClusterError, match="0 of 2 workers are left"):
        aggregate_files(models, "median", out, ray="local")
    with pytest.raises(InputError, match="rule 'bulyan' needs whole rows"):
        aggregate_files(models, "bulyan:f=1", out, ray="local")
    assert not out.exists() and not list(tmp_path.glob("*.part"))


def test_shards_are_all_columns_once(models):
    assert cut(10, 3) == [(0, 3), (3, 6), (6, 10)]
    files = UpdateFiles(models)
    whole = [block.float().clone() for block in files.blocks(64)]
    parts = [b.float().clone() for one in cut(files.d, 5) for b in FileShard(files, one).blocks(64)]
    assert torch.equal(torch.cat(parts, 1), torch.cat(whole, 1))
    counts = {"a.weight": 1230, "b.bias": 7, "c.weight": 501}
    ends = [at + counts[part.name] for at, part in zip(files.columns, files.parts, strict=True)]
    assert ends == [*files.columns[1:], files.d]
