"""Weighted forms of rules, truncated claims, and how many Byzantine clients a cohort holds."""

import itertools
import math

import pytest
import torch

from experiments.sampled_cohorts import sentences
from fedrobust.aggregation import (
    RULES,
    aggregate,
    build,
    check_weighable,
    preaggregate,
    rule_record,
)
from fedrobust.aggregation.cohorts import exceeds, smallest_cohort, smallest_f
from fedrobust.aggregation.pre import nnm_mixing
from fedrobust.aggregation.weighting import heaviest, shares, truncated
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError

WEIGHABLE = {
    "mean": {}, "median": {}, "trimmed_mean": {"f": 2}, "geometric_median": {}, "rfa": {},
    "norm_clipping": {"bound": 3.0}, "centered_clipping": {"tau": 2.0}, "fednga": {},
    "huber": {"threshold": 1.5},
}  # fmt: skip
COUNTS = torch.tensor([1, 2, 3, 1, 2, 1, 1, 1, 1, 2, 1])  # 16 in all


def sample(n=11, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_rules_with_a_weighted_form():
    assert {name for name in RULES if rule_record(name).weighable} == set(WEIGHABLE)


@pytest.mark.parametrize("name", WEIGHABLE)
def test_equal_weights_are_no_weights(name):
    x, rule = sample(), {"name": name, **WEIGHABLE[name]}
    expected = aggregate(x, rule)
    found = aggregate(x, rule, weights=[7.0] * 11)
    assert torch.allclose(found, expected, atol=1e-9)
    if name == "median":
        even = aggregate(x[:10], rule, weights=torch.full((10,), 0.3))
        assert torch.allclose(even, aggregate(x[:10], rule), atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(WEIGHABLE) - {"trimmed_mean"}))
def test_a_weight_of_two_is_the_row_twice(name):
    x, rule = sample(), {"name": name, **WEIGHABLE[name]}
    repeated = x.repeat_interleave(COUNTS, 0)
    assert torch.allclose(aggregate(x, rule, weights=COUNTS), aggregate(repeated, rule), atol=1e-6)


def test_the_weighted_trimmed_mean_cuts_the_mass_of_the_heaviest():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]).double()
    weights = [0.1, 0.3, 0.2, 0.2, 0.2]
    # 0.3 off each end: of the mass 0.3 .. 0.7 there is 0.1 at 1, 0.2 at 2 and 0.1 at 3.
    found = aggregate(x, {"name": "trimmed_mean", "f": 1}, weights=weights)
    assert float(found) == pytest.approx((0.1 * 1 + 0.2 * 2 + 0.1 * 3) / 0.4)
    with pytest.raises(ValueError, match="the 2 heaviest clients hold 50% of the weight"):
        aggregate(x, {"name": "trimmed_mean", "f": 2}, weights=weights)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median"])
def test_breakdown_is_in_weight(name):
    """Two clients of 11 with 40 % of the weight do not carry the result away; with 60 % they do."""
    x = sample()
    x[:2] = 1e6
    light = torch.tensor([0.2, 0.2] + [0.6 / 9] * 9)
    heavy = torch.tensor([0.3, 0.3] + [0.4 / 9] * 9)
    rule = {"name": name, **WEIGHABLE[name]}
    assert float(aggregate(x, rule, weights=light).norm()) < 20
    if name == "trimmed_mean":
        with pytest.raises(ValueError, match="hold 60% of the weight"):
            aggregate(x, rule, weights=heavy)
    else:
        assert float(aggregate(x, rule, weights=heavy).norm()) > 1e5


def test_weighted_nnm():
    x = sample(7, 3)
    spec = {"name": "nnm", "f": 2}
    assert torch.allclose(
        aggregate(x, "mean", pre=[spec], weights=[1.0] * 7), preaggregate(x, spec).mean(0)
    )
    weights = shares([3.0, 1, 1, 1, 1, 1, 1], 7)
    room = 1 - 4 / 9
    rows = []
    for i in range(7):
        left, row = room, torch.zeros(3).double()
        for j in sorted(range(7), key=lambda j: float((x[i] - x[j]).norm())):
            part = min(left, float(weights[j]))
            row, left = row + part / room * x[j], left - part
        rows.append(row)
    expected = weights @ torch.stack(rows)
    assert torch.allclose(aggregate(x, "mean", pre=[spec], weights=weights), expected)
    by_column = aggregate(torch.stack(rows), "median", weights=weights)
    assert torch.allclose(aggregate(x, "median", pre=[spec], weights=weights), by_column)


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "nnm"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_cut_by_weight_keeps_nothing_at_any_size(name, seed):
    """Shares do not add up exactly: 1e-17 of a row of 1e30 would own the result."""
    source = torch.Generator().manual_seed(seed)
    x, weights = sample(seed=seed), torch.rand(11, generator=source).double() + 0.1
    order = weights.argsort(descending=True)
    x[order[:2]] = 1e30
    honest = x[order[2:]]
    if name == "nnm":
        found = preaggregate_with(x, weights)[order[2:]]
    else:
        found = aggregate(x, {"name": name, **WEIGHABLE[name]}, weights=weights)
    assert float(found.abs().max()) <= float(honest.abs().max())


def preaggregate_with(x, weights):
    return nnm_mixing(x, f=2, weights=shares(weights, len(x))) @ x


def test_rows_that_are_set_aside_take_their_weight_with_them():
    x = sample()
    x[0, 0] = math.nan
    weights = torch.arange(1.0, 12)
    for name, given in WEIGHABLE.items():
        rule = {"name": name, **given}
        fewer = rule | ({"f": 1} if "f" in given else {})
        outcome = build(rule).apply(x, weights=weights)
        expected = aggregate(x[1:], fewer, weights=weights[1:])
        assert torch.allclose(outcome.aggregate, expected)


def test_what_has_no_weighted_form_says_why():
    with pytest.raises(ValueError, match="krum has no weighted form: it counts updates"):
        aggregate(sample(), {"name": "krum", "f": 2}, weights=[1.0] * 11)
    with pytest.raises(ValueError, match="bucketing has no weighted form: its rows are no client"):
        aggregate(sample(), "mean", pre=[{"name": "bucketing", "size": 2}], weights=[1.0] * 11)
    with pytest.raises(ValueError, match="'alie' has no weighted form"):
        aggregate(sample(), {"name": "trimmed_mean", "f": 2, "variant": "alie"}, weights=[1] * 11)
    check_weighable("median", pre=[{"name": "clip", "bound": 1.0}])


@pytest.mark.parametrize(
    ("weights", "words"),
    [([1.0] * 10, "as many weights, got 10"), ([-1.0] + [1.0] * 10, "at least 0"),
     ([math.nan] + [1.0] * 10, "finite"), ([0.0] * 11, "zeros only")],
)  # fmt: skip
def test_weights_that_mean_nothing(weights, words):
    with pytest.raises(ValueError, match=words):
        aggregate(sample(), "mean", weights=weights)


def test_truncated_claims():
    cut = truncated([1e9, 1, 1, 1, 1], f=1, share=0.4)
    assert heaviest(cut, 1) == pytest.approx(0.4)
    assert torch.allclose(cut[1:], torch.full((4,), 0.15).double())
    fair = torch.tensor([3.0, 2, 2, 2, 1])
    assert torch.allclose(truncated(fair, f=1, share=0.5), fair.double() / 10)
    hostile = truncated([math.inf, math.nan, -14.0, 5.0, 5.0, 5.0], f=1, share=0.5)
    assert hostile.tolist() == pytest.approx([0.25, 0, 0, 0.25, 0.25, 0.25])
    for bad, words in (({"f": 1, "share": 0.2}, "share"), ({"f": 0, "share": 0.5}, "whole f")):
        with pytest.raises(ValueError, match=words):
            truncated([1.0] * 5, **bad)
    for huge in (1e300, 1.7e308):
        assert torch.allclose(truncated([huge, 1, 1, 1, 1], f=1, share=0.4), cut)
    assert torch.allclose(
        truncated([5.0, 1, 1], f=1, share=1.0), torch.tensor([5, 1, 1]).double() / 7
    )
    for nothing in ([1.0, 1, 0, 0, 0, 0], [0.0] * 6, [math.nan] * 6):
        with pytest.raises(ValueError, match="under any cap"):
            truncated(nothing, f=2, share=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_no_f_claims_hold_more_than_the_share_and_the_cap_is_the_largest(seed):
    claims = torch.rand(9, generator=torch.Generator().manual_seed(seed)).double() ** 6
    cut = truncated(claims, f=2, share=0.4)
    assert max(float(cut[list(pair)].sum()) for pair in itertools.combinations(range(9), 2)) <= (
        0.4 + 1e-9
    )
    full = shares(claims, 9)
    if heaviest(full, 2) > 0.4:
        scaled = full / full.min() * cut.min()
        cap = float(scaled.clamp(max=float(cut.max())).max())
        assert heaviest(shares(scaled.clamp(max=cap * 1.01), 9), 2) > 0.4
        assert torch.allclose(shares(scaled.clamp(max=cap), 9), cut)


# Cohorts


def test_the_chance_of_too_many_is_the_count_of_cohorts():
    members = [True] * 3 + [False] * 7
    cohorts = list(itertools.combinations(range(10), 4))
    for f in range(4):
        share = sum(sum(members[i] for i in c) > f for c in cohorts) / len(cohorts)
        once = exceeds(f, clients=10, byzantine=3, cohort=4)
        assert once == pytest.approx(share, abs=1e-12)
        often = exceeds(f, clients=10, byzantine=3, cohort=4, rounds=20)
        assert often == pytest.approx(1 - (1 - share) ** 20, abs=1e-12)
    assert exceeds(0, clients=10, byzantine=0, cohort=4, rounds=10**6) == 0
    assert exceeds(0, clients=3, byzantine=3, cohort=1) == 1


def test_the_smallest_f_and_cohort():
    given = {"clients": 1000, "byzantine": 100, "rounds": 500}
    f = smallest_f(**given, cohort=50)
    assert exceeds(f, **given, cohort=50) <= 0.01 < exceeds(f - 1, **given, cohort=50)
    assert f > 50 * 0.1, "the sample may hold more than the population's share"
    cohort = smallest_cohort({"name": "krum", "f": 0}, **given)
    needed = smallest_f(**given, cohort=cohort)
    assert cohort >= 2 * needed + 3
    before = smallest_f(**given, cohort=cohort - 1)
    assert cohort - 1 < 2 * before + 3
    assert smallest_cohort("bulyan", clients=10, byzantine=4) is None
    assert smallest_f(clients=10, byzantine=2, cohort=10) == 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"byzantine": 11}, "byzantine within 0..10"), ({"cohort": 0}, "cohort within 1..10"),
     ({"rounds": 0}, "rounds of at least 1"), ({"f": -1}, "whole f")],
)  # fmt: skip
def test_cohorts_refuse_what_means_nothing(bad, words):
    given = {"f": 1, "clients": 10, "byzantine": 2, "cohort": 5, "rounds": 1} | bad
    with pytest.raises(ValueError, match=words):
        exceeds(given.pop("f"), **given)


SAMPLED = {"clients": 1000, "byzantine": 100, "participation": 0.05, "rounds": 500}


def test_the_implied_f_follows_the_sample(small):
    told = from_dict({**small, **SAMPLED, "rule": "krum"})
    assert told.rule["f"] == smallest_f(clients=1000, byzantine=100, cohort=50, rounds=500) == 15
    assert from_dict({**small, "rule": "krum"}).rule["f"] == 2, "all are asked: the Byzantine ones"
    with pytest.raises(ConfigError) as caught:
        from_dict({**small, **SAMPLED, "rule": "krum", "participation": 0.02})
    assert caught.value.errors == [
        "krum with f=9 needs at least 21 updates, got 20; asked 21 at a time it bears the f that"
        " they need"
    ]
    with pytest.raises(ConfigError, match="no cohort of these 10 clients is large enough for it"):
        from_dict({**small, "rule": "bulyan", "byzantine": 3, "participation": 0.8})


def test_check_says_how_often_the_sample_exceeds_f(small):
    few, half = (from_dict({**small, **SAMPLED, "rule": rule})
                 for rule in ({"name": "krum", "f": 5}, "median"))  # fmt: skip
    assert sentences([from_dict(small)], delta=0.01) == []
    one, two = sentences([few, half, few], delta=0.01)
    chance = exceeds(5, clients=1000, byzantine=100, cohort=50, rounds=500)
    assert (
        f"More than its f=5 of those asked are in some round with probability {chance:.3g}" in one
    )
    assert "Below 0.01 it is from f=15 on; the smallest cohort in which krum bears that is" in one
    assert "More than half: f=24" in two
    assert "from f=21 on" in sentences([few], delta=1e-7)[0]
