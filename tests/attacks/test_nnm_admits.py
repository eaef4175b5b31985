"""What nearest-neighbour mixing lets in, counted: where it protects, where not, and how far."""

from __future__ import annotations

import pytest
import torch

from fedrobust.aggregation import aggregate
from fedrobust.seeds import generator

N, F, D = 20, 4, 6000
NNM = [{"name": "nnm", "f": F}]
SIZES = (0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 2.0, 16.0, 256.0)  # of sigma, which is 1 here


def moved(rule, size, pre):
    """How far all attackers at one place, ``size`` along one coordinate, move a rule that way."""
    honest = torch.randn(N - F, D, generator=generator(0, "honest")) / D**0.5
    away = torch.zeros(D)
    away[0] = size
    sent = (honest.mean(0) + away).expand(F, -1)
    found = aggregate(torch.cat([honest, sent]), rule, pre=pre)
    return float((found - honest.mean(0))[0])


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_the_mean_behind_nnm_is_carried_away_by_a_quarter_of_what_carries_the_mean(size):
    """The f attackers are each other's nearest: each mixes to f / (n - f) of its vector."""
    assert moved("mean", size, []) == pytest.approx(size * F / N, rel=1e-3)
    assert moved("mean", size, NNM) == pytest.approx(size * F**2 / (N * (N - F)), rel=1e-3)


@pytest.mark.parametrize(
    ("rule", "alone"),
    [
        ({"name": "median"}, 0.005),
        ({"name": "trimmed_mean", "f": F}, 0.008),
        ({"name": "geometric_median"}, 0.25),
        ({"name": "centered_clipping", "tau": 1.0, "iterations": 3}, 0.25),
        ({"name": "caf", "f": F}, 0.10),
        ({"name": "multi_krum", "f": F}, 0.30),
        ({"name": "krum", "f": F}, 1.2),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_behind_nnm_all_bounded_rules_give_way_alike(rule, alone):
    """By f / (n - f) sigma: attackers at the rim of the honest cloud are nobody's farthest rows.

    For a rule that gives way farther by itself that is a gain; for the median, CAF and their like
    it is a loss.
    """
    plain, mixed = (max(moved(rule, size, pre) for size in SIZES) for pre in ([], NNM))
    assert plain == pytest.approx(alone, abs=0.02)
    assert mixed == pytest.approx(F / (N - F), abs=0.005)
