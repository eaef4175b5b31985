"""MDA and SMEA find, without trying every subset, the one that trying them all finds; ties, too."""

import itertools

import pytest
import torch

from fedrobust.aggregation import aggregate, subsets
from fedrobust.aggregation.distances import centred_gram, squared_distances
from fedrobust.aggregation.subsets import least_diameter, least_spread, top_eigenvalue
from fedrobust.failures import Refusal


def all_subsets(n, f):
    return [list(rows) for rows in itertools.combinations(range(n), n - f)]


def brute_diameter(squared, f):
    return min(all_subsets(len(squared), f), key=lambda r: float(squared[r][:, r].max()))


def brute_spread(gram, f):
    return min(all_subsets(len(gram), f), key=lambda r: top_eigenvalue(gram, r))


def rows_of(kind, n, seed):
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 6 if kind != "high" else 400, generator=source)
    if kind == "far":
        rows[: n // 3] += torch.tensor([1e3, 1e6, 1e9])[torch.arange(n // 3) % 3, None]
    if kind == "ties":  # on a grid of few values, some rows twice
        rows = rows.round()
        rows[n // 2 :] = rows[: n - n // 2].clone()
    if kind == "alike":
        rows[:] = 1.5
    if kind == "clusters":
        rows[::2] += 8
    return rows


KINDS = ["plain", "high", "far", "ties", "alike", "clusters"]
SIZES = [(3, 0), (3, 1), (5, 2), (8, 2), (9, 4), (11, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "f"), SIZES)
def test_the_search_finds_what_trying_all_subsets_finds(kind, n, f):
    for seed in range(6):
        rows = rows_of(kind, n, seed)
        squared, gram = squared_distances(rows), centred_gram(rows)
        assert least_diameter(squared, f) == brute_diameter(squared, f)
        assert least_spread(gram, f) == brute_spread(gram, f)


def test_mda_searches_where_there_are_too_many_subsets_to_try():
    rows = torch.randn(60, 50, generator=torch.Generator().manual_seed(1))
    rows[5:17] += 30
    found = aggregate(rows, {"name": "mda", "f": 12})  # 1.4e12 subsets
    kept = [i for i in range(60) if not 5 <= i < 17]
    assert torch.allclose(found, rows[kept].mean(0), atol=1e-6)


def test_a_search_that_takes_too_long_ends_with_a_reason(monkeypatch):
    monkeypatch.setattr(subsets, "MOST_STEPS", 5)
    with pytest.raises(Refusal, match=r"mda with f=4 of 20 updates: the search .* 5 steps"):
        aggregate(rows_of("high", 20, 0), {"name": "mda", "f": 4})
    monkeypatch.setattr(subsets, "MOST_SUBSETS", 5)
    with pytest.raises(Refusal, match="smea with f=4 of 20 updates has 4845 subsets"):
        aggregate(rows_of("high", 20, 0), {"name": "smea", "f": 4})


@pytest.mark.parametrize("kind", KINDS)
def test_few_subsets_are_computed_exactly(kind, monkeypatch):
    """The commonest size; where all rows are alike every subset ties, and all are computed."""
    gram, exact = centred_gram(rows_of(kind, 20, 3)), []
    monkeypatch.setattr(
        subsets, "top_eigenvalue", lambda g, rows: exact.append(0) or top_eigenvalue(g, rows)
    )
    subsets.least_spread(gram, 3)
    assert len(exact) == 1140 + 12 if kind == "alike" else len(exact) < 150
