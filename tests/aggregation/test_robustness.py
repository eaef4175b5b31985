"""Published coefficients: worked values, and a search for inputs that would exceed them."""

import math

import pytest
import torch

from experiments import listing
from fedrobust.aggregation import aggregate, bounds, coefficient, measured
from fedrobust.aggregation.tables import RULE_RECORDS

PUBLISHED = [name for name, record in RULE_RECORDS.items() if record.kappa]
SIZES = [(5, 1, 1), (7, 2, 2), (9, 2, 3)]  # n, f, d


# A hundred steps to 1e-5: the search asks thousands of times.
QUICK = {"geometric_median": {"tolerance": 1e-5, "max_iterations": 100}}


def spec(name, f):
    return {"name": name, **({"f": f} if RULE_RECORDS[name].takes_f else {}), **QUICK.get(name, {})}


def test_worked_coefficients():
    assert coefficient("median", n=10, f=2) == pytest.approx(4 * (1 + 2 / 6) ** 2)
    assert coefficient("geometric_median", n=10, f=2) == coefficient("median", n=10, f=2)
    assert coefficient({"name": "krum", "f": 2}, n=10, f=2) == pytest.approx(8)
    assert coefficient({"name": "trimmed_mean", "f": 2}, n=10, f=2) == pytest.approx(8 / 3)
    assert coefficient({"name": "smea", "f": 2}, n=10, f=2) == pytest.approx(16 / 9)
    nnm = [{"name": "nnm", "f": 2}]
    assert coefficient({"name": "krum", "f": 2}, n=10, f=2, pre=nnm) == pytest.approx(2 * 9)
    assert coefficient({"name": "trimmed_mean", "f": 0}, n=10, f=0) == 0
    assert coefficient("median", n=4, f=2) == math.inf
    for nothing in ("mean", {"name": "multi_krum", "f": 2}):
        assert coefficient(nothing, n=10, f=2) is None
    assert coefficient({"name": "krum", "f": 2, "variant": "byzfl"}, n=10, f=2) is None
    clip = [{"name": "clip", "bound": 1.0}]
    assert coefficient("median", n=10, f=2, pre=clip) is None


def test_a_measured_coefficient():
    honest = torch.tensor([[0.0, 0], [2, 0]])
    assert measured(torch.tensor([1.0, 3]), honest) == pytest.approx(9)
    assert measured(torch.tensor([1.0, 0]), honest) == 0
    assert measured(torch.tensor([1.0, 1]), honest[:1].expand(3, -1)) == math.inf


def worst(defence, n, f, d, *, pre=(), seed=0, steps=250):
    """Search honest and Byzantine rows for the greatest coefficient: a climb from three starts."""
    source = torch.Generator().manual_seed(seed)
    best = 0.0
    for reach in (1.0, 3.0, 100.0):
        rows = torch.randn(n, d, generator=source, dtype=torch.float64)
        rows[n - f :] *= reach
        value = measured(aggregate(rows, defence, pre=pre), rows[: n - f])
        size = 1.0
        for _ in range(steps):
            step = torch.randn(n, d, generator=source, dtype=torch.float64) * size
            only = torch.rand(n, 1, generator=source) < 0.4
            trial = rows + step * only
            found = measured(aggregate(trial, defence, pre=pre), trial[: n - f])
            better = found > value
            rows, value = (trial, found) if better else (rows, value)
            size = min(10.0, size * 1.5) if better else max(1e-3, size * 0.95)
        best = max(best, value)
    return best


@pytest.mark.filterwarnings("ignore:geometric_median has not converged")
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("n", "f", "d"), SIZES)
def test_no_input_exceeds_the_published_coefficient(name, n, f, d):
    found = worst(spec(name, f), n, f, d)
    published = coefficient(spec(name, f), n=n, f=f)
    assert found <= published * (1 + 1e-9)
    assert found > 0.1 * bounds.least(n, f), "the search finds nothing: it proves nothing"


@pytest.mark.parametrize("name", ["median", "krum", "trimmed_mean"])
def test_no_input_exceeds_the_coefficient_behind_nnm(name):
    n, f, d = 9, 2, 2
    pre = [{"name": "nnm", "f": f}]
    found = worst(spec(name, f), n, f, d, pre=pre, steps=150)
    assert found <= coefficient(spec(name, f), n=n, f=f, pre=pre)


def test_the_search_finds_what_is_not_robust():
    assert worst("mean", 7, 2, 2, steps=150) > 100
    assert worst({"name": "trimmed_mean", "f": 0}, 7, 2, 2, steps=150) > 100


def test_the_listing_says_what_is_published():
    table = {line["name"]: line["what"] for line in listing.tables("rules")["rules"]}
    assert table["krum"].endswith("(f, kappa)-robust; kappa = 8 at n=20, f=4.")
    assert "kappa" not in table["multi_krum"]
    pre = {e["name"]: e["what"] for e in listing.tables("pre-aggregators")["pre-aggregators"]}
    assert "8 f / (n - f) (kappa + 1)" in pre["nnm"]
