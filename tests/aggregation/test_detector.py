"""FLDetector: its parts against literal versions, and whom it finds over rounds."""

import itertools

import numpy as np
import pytest
import torch

from fedrobust.aggregation import Refusal, build
from fedrobust.aggregation.detector import clusters, hessian_product, splits

SETTINGS = {"name": "fldetector", "window": 5, "start": 6}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pairs", [1, 3, 5])
def test_the_compact_form_is_bfgs_step_by_step(seed, pairs):
    """B <- B - B s s' B / s' B s + y y' / y' s, from sigma times the identity."""
    source = seeded(seed)
    a = torch.randn(8, 8, generator=source, dtype=torch.float64)
    curvature = a @ a.T + torch.eye(8)
    s = torch.randn(pairs, 8, generator=source, dtype=torch.float64)
    y = s @ curvature
    v = torch.randn(8, generator=source, dtype=torch.float64)
    b = np.eye(8) * float(y[-1] @ s[-1] / (s[-1] @ s[-1]))
    for step, change in zip(s.numpy(), y.numpy(), strict=True):
        moved = b @ step
        b = b - np.outer(moved, moved) / (step @ moved) + np.outer(change, change) / (change @ step)
    expected = torch.from_numpy(b @ v.numpy())
    assert torch.allclose(hessian_product(s, y, v), expected, atol=1e-6)
    # The model's step may be known up to a factor: the product is the same.
    assert torch.allclose(hessian_product(-3 * s, y, -3 * v), expected, atol=1e-6)


def test_a_hessian_that_is_not_there_is_no_nan():
    zeros = torch.zeros(2, 4)
    assert torch.equal(hessian_product(zeros, zeros, torch.ones(4)), torch.zeros(4).double())
    same = torch.ones(3, 4)
    assert torch.isfinite(hessian_product(same, same, torch.ones(4))).all()


def test_values_are_cut_where_the_squares_are_least():
    values = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 5.0]).double()
    for k in (1, 2, 3, 4):
        sums = {
            cut: sum(float((part - part.mean()).square().sum()) for part in np.split(values, cut))
            for cut in itertools.combinations(range(1, 6), k - 1)
        }
        best = min(sums, key=sums.get)
        spread, places = splits(values, k)
        assert spread == pytest.approx(sums[best], abs=1e-12) and tuple(places) == best


def test_the_gap_statistic_counts_clusters():
    two = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.98, 0.99, 1.0]).double()
    even = torch.linspace(0, 1, 12).double()
    assert clusters(two, 20, seeded(0)) == 2
    assert clusters(even, 20, seeded(0)) == 1
    assert clusters(torch.full((6,), 0.3).double(), 20, seeded(0)) == 1


def rounds(rule, *, attackers, turns=20, seed=1, missing=()):
    """Train a quadratic among 12 clients; return who is out after each round, and the last one."""
    source, n, d = seeded(seed), 12, 30
    a = torch.randn(d, d, generator=source, dtype=torch.float64)
    curvature = a @ a.T / d + 0.1 * torch.eye(d)
    own = 0.3 * torch.randn(n, d, generator=source, dtype=torch.float64)
    model = 3 * torch.randn(d, generator=source, dtype=torch.float64)
    state, told = rule.init(), []
    for turn in range(turns):
        noise = torch.randn(n, d, generator=source, dtype=torch.float64)
        updates = curvature @ model - own + 0.01 * noise
        updates[:attackers] = -3 * updates[attackers:].mean(0) + 0.5 * noise[:attackers]
        there = [c for c in range(n) if not (turn in missing and c == 5)]
        outcome = rule.apply(updates[there], state, seeded(turn), clients=there)
        state, model = outcome.state, model - 0.1 * outcome.aggregate
        told.append(sorted(state["out"].tolist()))
    return told, outcome


def test_attackers_are_found_in_the_first_round_with_a_whole_window():
    told, last = rounds(build(SETTINGS), attackers=3)
    assert told[9] == [] and told[10] == told[-1] == [0, 1, 2]
    assert last.weights is None
    mean, last = rounds(build(SETTINGS | {"inner": "mean"}), attackers=3)
    assert mean[-1] == [0, 1, 2]
    assert last.weights.tolist() == pytest.approx([0.0] * 3 + [1 / 9] * 9)


def test_attackers_are_found_reliably_and_honest_clients_sometimes():
    """The gap statistic is asked anew each round: now and then it puts honest clients out."""
    found = [rounds(build(SETTINGS), attackers=0, seed=seed)[0][-1] for seed in range(10)]
    assert sum(not out for out in found) >= 5
    attacked = [rounds(build(SETTINGS), attackers=3, seed=seed)[0][-1] for seed in range(10)]
    assert attacked == [[0, 1, 2]] * 10


def test_who_is_missing_for_a_round_is_neither_found_nor_another():
    told, last = rounds(build(SETTINGS), attackers=3, missing=(8, 9))
    assert 5 not in told[-1] and told[-1] == [0, 1, 2]
    assert sorted(last.state["error_clients"].tolist()) == list(range(12))


def test_memory_is_a_value_and_nobody_left_is_a_refusal():
    rule, rows = build(SETTINGS), torch.randn(5, 4, generator=seeded(2))
    first = rule.apply(rows, rule.init(), seeded(1))
    kept = {key: value.clone() for key, value in first.state.items()}
    rule.apply(rows + 1, first.state, seeded(1))
    assert all(torch.equal(first.state[key], kept[key]) for key in kept)
    with pytest.raises(Refusal, match="excluded all 5 clients"):
        rule.apply(rows, first.state | {"out": torch.arange(5)}, seeded(1))
    wider = rule.apply(torch.cat([rows, rows], 1), first.state, seeded(1))
    assert wider.aggregate.shape == (8,), "another model begins anew"


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"window": 0}, "whole window of at least 1"), ({"start": 0}, "whole start"),
     ({"references": 0}, "whole references"), ({"inner": "krum"}, "unknown variant 'krum'")],
)  # fmt: skip
def test_settings_that_mean_nothing(bad, words):
    with pytest.raises(ValueError, match=words):
        build({"name": "fldetector", **bad}).apply(torch.ones(4, 3))
