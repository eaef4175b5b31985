"""Published robustness coefficients: no input that a search finds is worse than they say."""

import pytest
import torch

from experiments.benchmarks.kappa import NOT_SEARCHED, QUICK, cases, kappa_of, worst
from fedrobust.aggregation import RULES, Rule, aggregate, coefficient, installed
from fedrobust.aggregation.bounds import least
from fedrobust.aggregation.tables import RULE_RECORDS

PUBLISHED = [name for name, record in RULE_RECORDS.items() if record.kappa is not None]


@pytest.mark.parametrize("before", [(), ("nnm",)], ids=["alone", "behind nnm"])
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2)])
def test_no_input_is_worse_than_published(name, before, n, f):
    spec, pre = {"name": name, **QUICK.get(name, {})}, [{"name": one, "f": f} for one in before]
    if RULE_RECORDS[name].takes_f:
        spec["f"] = f
    found = max(worst(spec, n=n, f=f, d=d, steps=80, pre=pre)[0] for d in (1, 2))
    assert found <= coefficient(spec, n=n, f=f, pre=pre)
    assert found >= 0.99 * least(n, f), "no rule is better than this: the search is too weak"


def test_the_search_would_find_a_rule_that_trims_too_little():
    def careless(updates, *, f):
        """Trim one value too few on each side."""
        return aggregate(updates, {"name": "trimmed_mean", "f": f - 1})

    with installed(Rule(name="careless", compute=careless)):
        found, rows = worst({"name": "careless", "f": 2}, n=9, f=2, d=1, steps=0)
        assert found > coefficient({"name": "trimmed_mean", "f": 2}, n=9, f=2)
        assert kappa_of(rows, {"name": "careless", "f": 2}, f=2) == found


def test_the_coefficient_of_a_worked_input():
    """Honest 0, 0, 1, 1 and one Byzantine 1: the median is 1, the mean 1/2, the variance 1/4."""
    rows = torch.tensor([[0.0], [0.0], [1.0], [1.0], [1.0]]).double()
    assert kappa_of(rows, "median", f=1) == pytest.approx(1.0)
    assert kappa_of(rows, {"name": "krum", "f": 1}, f=1) == pytest.approx(1.0)
    assert kappa_of(torch.ones(5, 1).double(), "median", f=1) == 0, "nobody differs"


def test_every_rule_is_searched_or_named():
    assert set(NOT_SEARCHED) <= set(RULES)
    assert not set(NOT_SEARCHED) & set(PUBLISHED)
    row = next(cases(steps=4, names=["bulyan"], sizes=((7, 1),)))
    assert row["published"] is None and row["measured"] >= row["least"] > 0
