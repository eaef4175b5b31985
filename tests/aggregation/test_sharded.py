"""Shards of columns, each looked at by itself, give the numbers of the whole matrix."""

import pytest
import torch

from fedrobust.aggregation import aggregate, streamed
from fedrobust.aggregation.sharded import check_sharded, look, needs_products, parts_of, settle
from fedrobust.aggregation.streamed import BY_PRODUCTS, Dense, Streamed
from fedrobust.aggregation.tables import RULE_RECORDS
from fedrobust.failures import Refusal
from fedrobust.seeds import generator
from fedrobust.spec import SpecError
from tests.experiments.test_aggregate_files import spec_of

SHARDED = [n for n, r in RULE_RECORDS.items() if r.coordinate_wise or n in BY_PRODUCTS]


@pytest.fixture
def updates():
    source = torch.Generator().manual_seed(3)
    rows = torch.randn(15, 4001, generator=source) * torch.linspace(0.5, 2, 15)[:, None]
    rows += 3 * torch.randn(4001, generator=source)
    rows[:2] *= -4
    return rows


def in_shards(updates, spec, pre=(), cuts=(700, 1301, 2000), found=None):
    shards = [Dense(part) for part in updates.tensor_split(cuts, dim=1)]
    wanted = needs_products(spec, pre)
    looks = [look(shard, products=wanted) for shard in shards]
    settled = settle(looks, spec, pre=pre, generator=generator(1, "rule"), found=found)
    return torch.cat([part for shard in shards for part in parts_of(shard, settled)])


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("damaged", [False, True])
def test_each_rule_gives_the_numbers_of_memory(name, damaged, updates, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 7001)
    if damaged:  # in different shards
        updates[4, 3900], updates[9, 0] = float("nan"), float("inf")
    spec, found = spec_of(name), Streamed()
    check_sharded(spec, n=15)
    whole = aggregate(updates, spec, generator=generator(1, "rule"))
    assert torch.allclose(in_shards(updates, spec, found=found), whole, rtol=1e-5, atol=1e-5)
    assert found.set_aside == ([4, 9] if damaged else []) and found.passes == 2


@pytest.mark.parametrize("rule", [{"name": "trimmed_mean", "f": 2}, "geometric_median"])
@pytest.mark.parametrize("pre", ["nnm", "bucketing", "clip", "arc"])
def test_pre_aggregators_too(rule, pre, updates):
    given = {"nnm": {"f": 2}, "bucketing": {"size": 2}, "clip": {"bound": 40.0}, "arc": {"f": 2}}
    chain = [{"name": pre, **given[pre]}]
    whole = aggregate(updates, rule, pre=chain, generator=generator(1, "rule"))
    assert torch.allclose(in_shards(updates, rule, chain), whole, rtol=1e-5, atol=1e-5)


def test_what_needs_whole_rows_or_more_rows_is_refused(updates):
    assert len(SHARDED) >= 18
    with pytest.raises(SpecError, match="rule 'bulyan' needs whole rows"):
        check_sharded({"name": "bulyan", "f": 2}, n=15)
    with pytest.raises(ValueError, match="krum with f=7 needs at least 17 updates, got 15"):
        check_sharded({"name": "krum", "f": 7}, n=15)
    updates[:, 5] = float("nan")
    with pytest.raises(Refusal, match="none of the 15 updates is finite"):
        in_shards(updates, "median")
