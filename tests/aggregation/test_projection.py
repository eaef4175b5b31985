"""A random projection in front of a rule by distances."""

import pytest
import torch

from fedrobust.aggregation import aggregate, build, check
from fedrobust.aggregation.projection import INNER, sketch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(n=11, d=5000, seed=0):
    return torch.randn(n, d, generator=seeded(seed))


def test_a_sketch_is_signed_sums_of_its_buckets():
    x = sample(3, 50).double()
    found = sketch(x, 8, seeded(4))
    source = seeded(4)
    buckets = torch.randint(0, 8, (2, 50), generator=source).tolist()
    signs = (torch.randint(0, 2, (2, 50), generator=source) * 2 - 1).tolist()
    for row, sums in zip(x.tolist(), found.tolist(), strict=True):
        expected = [0.0] * 16
        for table in range(2):
            for value, bucket, sign in zip(row, buckets[table], signs[table], strict=True):
                expected[8 * table + bucket] += sign * value / 2**0.5
        assert sums == pytest.approx(expected, abs=1e-12)
    assert torch.equal(sketch(x, 25, seeded(4)), x), "nothing to project"


def test_squared_distances_keep_their_mean_and_vary_as_stated():
    x = sample(2)
    true = float((x[0] - x[1]).square().sum())
    k = 200
    ratios = torch.tensor([
        float((s[0] - s[1]).square().sum()) / true
        for s in (sketch(x, k, seeded(i)) for i in range(200))
    ])  # fmt: skip
    assert float(ratios.mean()) == pytest.approx(1, abs=0.03)
    assert float(ratios.std()) == pytest.approx((1 / k) ** 0.5, rel=0.2)


@pytest.mark.parametrize("inner", sorted(INNER))
def test_the_inner_rule_sees_the_sketch_and_the_updates_are_summed(inner):
    x = sample()
    x[:2] += 3.0  # two attackers, well apart
    spec = {"name": "projected", "inner": inner, "f": 2, "dimension": 256}
    outcome = build(spec).apply(x, None, seeded(3))
    alone = {"name": inner} if inner == "geometric_median" else {"name": inner, "f": 2}
    on_sketch = build(alone).apply(sketch(x, 256, seeded(3)))
    assert torch.allclose(outcome.weights, on_sketch.weights)
    assert torch.allclose(outcome.weights.to(x) @ x, outcome.aggregate, atol=1e-4)
    assert float(outcome.weights[:2].sum()) < 0.1
    small = x[:, :100]
    assert torch.equal(aggregate(small, spec), aggregate(small, alone)), "as the rule itself"


def test_a_far_row_has_no_way_in_and_draws_differ():
    x = sample()
    for size in (1e2, 1e8, 1e30):
        x[0] = size
        spec = {"name": "projected", "inner": "multi_krum", "f": 2, "dimension": 64}
        assert float(aggregate(x, spec, generator=seeded(1)).abs().max()) < 5
    one, other = (sketch(x, 64, seeded(s)) for s in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"inner": "median"}, "unknown variant 'median' of projected's inner rule"),
     ({"dimension": 0}, "whole dimension of at least 1"), ({"f": -1}, "whole f of at least 0")],
)  # fmt: skip
def test_settings_that_mean_nothing(bad, words):
    with pytest.raises(ValueError, match=words):
        aggregate(sample(), {"name": "projected", "f": 2, **bad})


def test_it_needs_as_many_updates_as_its_inner_rule():
    check({"name": "projected", "f": 3, "inner": "mda"}, n=7)
    with pytest.raises(ValueError, match="projected with f=3 needs at least 9 updates, got 8"):
        check({"name": "projected", "f": 3}, n=8)
