"""Rules on worked examples: exact values, variants, memory."""

import math

import pytest
import textbook
import torch

from fedrobust.aggregation import aggregate, build, preaggregate

E2 = torch.tensor([(0, 9), (9, 8), (5, 1), (3, 7), (2, 2), (6, 0), (30, -20)], dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(0)


def sample(n=15, d=40, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spec(name, f=3):
    return {"name": name, "f": f}


WORKED = [
    ("mean", (7.857143, 1)),
    ("median", (5, 2)),
    ({"name": "trimmed_mean", "f": 1}, (5, 3.6)),
    ({"name": "trimmed_mean", "f": 2}, (4.666667, 3.333333)),
    ({"name": "krum", "f": 1}, (2, 2)),
    ({"name": "multi_krum", "f": 1, "m": 2}, (2.5, 4.5)),
    ({"name": "multi_krum", "f": 1, "m": 4}, (4, 2.5)),
    ({"name": "multi_krum", "f": 1, "m": 6}, (4.166667, 4.5)),
    ({"name": "bulyan", "f": 1}, (3.333333, 8)),
    ({"name": "meamed", "f": 1}, (4.166667, 4.5)),
    ({"name": "phocas", "f": 1}, (4.166667, 4.5)),
    ("geometric_median", (4.856848, 2.110434)),
    ("rfa", (4.904077, 2.048773)),
    ({"name": "centered_clipping", "tau": 10}, (4.542085, 2.870948)),
    ({"name": "centered_clipping", "tau": 10, "iterations": 3}, (5.365389, 3.350171)),
    ({"name": "centered_clipping", "tau": 5}, (3.109971, 1.874946)),
    ({"name": "centered_clipping", "tau": 1}, (0.665867, 0.418862)),
    ({"name": "norm_clipping", "bound": 5}, (3.109971, 1.874946)),
    ({"name": "cge", "f": 1}, (4.166667, 4.5)),
    ({"name": "mda", "f": 1}, (4.166667, 4.5)),
    ({"name": "smea", "f": 1}, (4.166667, 4.5)),
    ("sign_majority", (1, 1)),
    ({"name": "rlr", "threshold": 6}, (7.857143, -1)),  # votes: 6 and 4
    ({"name": "rlr", "threshold": 4}, (7.857143, 1)),
    ("fednga", (0.665867, 0.418862)),
]


@pytest.mark.parametrize(("rule", "expected"), WORKED, ids=str)
def test_worked_values(rule, expected):
    result = aggregate(E2, rule)
    assert torch.allclose(result, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_worked_values_before_the_rule():
    mixed = preaggregate(E2, {"name": "nnm", "f": 1})
    expected = torch.tensor([(4.166667, 4.5)] * 6 + [(9.166667, -0.333333)], dtype=torch.float64)
    assert torch.allclose(mixed, expected, atol=1e-6)
    chain = [{"name": "nnm", "f": 1}]
    for rule, value in (("mean", (4.880952, 3.809524)), (spec("trimmed_mean", 1), (4.166667, 4.5))):
        result = aggregate(E2, rule, pre=chain)
        assert torch.allclose(result, torch.tensor(value, dtype=torch.float64), atol=1e-6)
    for size, value in ((2, (4.25, 2.5)), (3, (4.666667, 3))):
        bucketing = {"name": "bucketing", "size": size, "permute": False}
        result = aggregate(E2, "median", pre=[bucketing])
        assert torch.allclose(result, torch.tensor(value, dtype=torch.float64), atol=1e-6)
    clipped = preaggregate(E2, {"name": "arc", "f": 1})
    assert torch.equal(clipped[:6], E2[:6])
    last = torch.tensor((10.019212, -6.679475), dtype=torch.float64)
    assert torch.allclose(clipped[6], last, atol=1e-6)


def test_foundation_repeats_the_first_of_the_farthest_from_both_extremes():
    """Largest (30, 9), smallest (0, -20): row (0, 9) is 30 and 29 away, (30, -20) 29 and 30."""
    added = preaggregate(E2, {"name": "foundation", "synthetic": 2})
    assert torch.equal(added, torch.cat([E2, E2[:1], E2[:1]]))
    assert preaggregate(E2, "foundation").shape == (10, 2)
    found = aggregate(E2, "median", pre=[{"name": "foundation", "synthetic": 2}])
    assert found.tolist() == [3.0, 7.0]


def test_ties_go_to_the_lowest_index():
    x = torch.tensor([[-1.5], [-1.0], [-0.5], [0.0], [0.5], [1.0], [1.5], [-1.5], [-1.5], [-1.5]])
    outcome = build({"name": "krum", "f": 3}).apply(x)
    assert outcome.weights.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    ("variant", "power", "others"),
    [("paper", 2, 4), ("byzfl", 2, 5), ("epfl", 1, 5), ("alie_code", 1, 6), ("plain", 1, 4),
     ("fourth_power", 4, 4), ("plato", 2, 3)],
)  # fmt: skip
def test_each_variant_of_krum_is_its_own_score(variant, power, others):
    distances = torch.cdist(E2, E2)
    scores = [
        sum(sorted(row[j].item() ** power for j in range(7) if j != i)[:others])
        for i, row in enumerate(distances)
    ]
    winner = scores.index(min(scores))
    assert torch.equal(aggregate(E2, {"name": "krum", "f": 1, "variant": variant}), E2[winner])


def test_the_variant_decides_whether_alie_wins():
    """The worked case: the paper's score takes row 4, the ALIE program's row 2."""
    assert torch.equal(aggregate(E2, {"name": "krum", "f": 1}), E2[4])
    assert torch.equal(aggregate(E2, {"name": "krum", "f": 1, "variant": "alie_code"}), E2[2])
    with pytest.raises(ValueError, match="did you mean 'byzfl'"):
        aggregate(E2, {"name": "krum", "f": 1, "variant": "byzfll"})


def close(result, expected, atol=1e-6):
    return torch.allclose(result, torch.tensor(expected, dtype=result.dtype), atol=atol)


def test_worked_values_of_trust_and_direction():
    x = torch.tensor([(3.0, 4), (-4, 3), (0, 10), (-3, -4)], dtype=torch.float64)
    root = torch.tensor((0.0, 5), dtype=torch.float64)
    assert close(aggregate(x, {"name": "fltrust", "root": root}), (0, 4.166667))
    away = {"name": "fltrust", "root": torch.tensor((0.0, -5), dtype=torch.float64)}
    assert close(aggregate(x[:3], away), (0, -5))
    with pytest.raises(ValueError, match="root of shape"):
        aggregate(x, {"name": "fltrust", "root": root[:1]})
    histories = torch.tensor([(1.0, 0), (0, 1), (1, 1), (1, 1)], dtype=torch.float64)
    assert build("foolsgold").apply(histories).weights.tolist() == [1, 1, 0, 0]
    assert close(aggregate(E2, {"name": "caf", "f": 1}), (4.271224, 4.370520))
    guarded = {"name": "sign_guard", "share": 1.0}
    weights = build(guarded).apply(E2, None, seeded()).weights
    assert weights[6] == 0


def test_worked_scores_of_dnc():
    from fedrobust.aggregation.distances import centred_gram
    from fedrobust.aggregation.spectral import principal_scores

    _, scores = principal_scores(centred_gram(E2), torch.ones(7, dtype=torch.float64))
    expected = (125.66845, 16.49111, 4.19546, 58.75441, 23.97236, 0.40222, 931.15974)
    assert close(scores, expected, atol=1e-4)
    assert build({"name": "dnc", "f": 1}).apply(E2).weights[6] == 0


def test_median_of_means_worked():
    means = {"name": "median_of_means", "groups": 3}
    assert close(aggregate(E2, means | {"inner": "median"}), (4.5, 4))
    groups = torch.tensor([(4.5, 8.5), (4, 4), (38 / 3, -6)], dtype=torch.float64)
    expected = torch.from_numpy(textbook.geometric_median(groups.numpy()))
    assert torch.allclose(aggregate(E2, means), expected, atol=1e-4)


def test_foolsgold_remembers_each_client_through_a_dropout():
    rule, x, y = build("foolsgold"), sample(5, 6), sample(5, 6, seed=1)
    first = rule.apply(x, clients=range(5))
    second = rule.apply(y[[0, 1, 3, 4]], first.state, clients=[0, 1, 3, 4])
    sums = dict(zip(second.state["clients"].tolist(), second.state["sums"], strict=True))
    assert torch.allclose(sums[2], x[2])  # missing, not forgotten
    assert all(torch.allclose(sums[c], x[c] + y[c]) for c in (0, 1, 3, 4))
    holed = x.clone()
    holed[2] = math.nan
    third = rule.apply(holed, second.state, clients=range(5))
    assert third.weights[2] == 0
    assert torch.equal(third.state["sums"][2], x[2])
    late = rule.apply(sample(6, 6), third.state, clients=range(6))
    assert late.state["sums"].shape == (6, 6)
    assert torch.equal(first.state["sums"], x)  # what was handed out does not change


def test_foolsgold_may_be_normalised():
    outcome = build({"name": "foolsgold", "normalise": True}).apply(sample(5, 6))
    assert float(outcome.weights.sum()) == pytest.approx(1)


def test_clustered_krum_takes_one_cluster():
    near, far = sample(6, 5) * 0.01, sample(5, 5, seed=1) * 0.01 + 100
    chosen = {"name": "hierarchical_clustering_krum", "f": 3, "clusters": 2}
    weights = build(chosen).apply(torch.cat([near, far])).weights
    assert float(weights.sum()) == pytest.approx(1)
    assert {bool(weights[:6].any()), bool(weights[6:].any())} == {True, False}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"name": "bulyan", "f": 1, "variant": "epfl"}, (4, 2.5)),
        ({"name": "trimmed_mean", "f": 1, "variant": "alie"}, (5, 3.6)),
        ({"name": "flame", "noise": 0.0}, (2.673025, 5.418855)),  # rows 0, 1, 3, 4
        ({"name": "rfa", "start": "median", "iterations": 200}, (4.856848, 2.110434)),
        ({"name": "rfa", "start": "zero", "iterations": 200}, (4.856848, 2.110434)),
        ({"name": "centered_clipping", "tau": 1e9, "start": "mean"}, (7.857143, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_worked_values_of_variants(rule, expected):
    assert close(aggregate(E2, rule), expected)


def test_the_selection_of_epfls_bulyan():
    from fedrobust.aggregation.bulyan import epfl_mixing
    from fedrobust.aggregation.distances import squared_distances

    rows = epfl_mixing(squared_distances(E2), 1) @ E2
    assert close(rows, [(4, 2.5), (5 / 3, 6), (4, 1)])


def test_bulyan_picks_in_order():
    from fedrobust.aggregation.bulyan import bulyan_picks, one_pass_picks
    from fedrobust.aggregation.distances import squared_distances

    squared = squared_distances(E2)
    assert bulyan_picks(squared, 1).tolist() == [4, 3, 2, 1, 0]
    assert one_pass_picks(squared, 1).tolist() == [4, 3, 2, 5, 0]


def test_two_medians():
    x = torch.tensor([[1.0], [2.0], [4.0], [9.0]])
    assert aggregate(x, "median") == 3
    assert aggregate(x, {"name": "median", "variant": "lower"}) == 2


def test_iterative_multi_krum_scores_anew():
    iterative = {"name": "multi_krum", "f": 1, "m": 5, "iterative": True}
    chosen = build(iterative).apply(E2).weights.nonzero().flatten().tolist()
    remaining, picked = list(range(7)), []
    for _ in range(5):
        neighbours = max(1, len(remaining) - 3)
        scores = textbook.krum_scores(E2[remaining].numpy(), 1, neighbours)
        winner = remaining[scores.index(min(scores))]
        remaining.remove(winner)
        picked.append(winner)
    assert chosen == sorted(picked)


@pytest.mark.parametrize("name", ["bulyan", "trimmed_mean", "median"])
def test_an_unknown_variant_is_named(name):
    needs = {"f": 1} if name != "median" else {}
    with pytest.raises(
        ValueError, match=f"unknown variant 'papper' of {name}; did you mean 'paper'"
    ):
        aggregate(E2, {"name": name, **needs, "variant": "papper"})


def test_flame_adds_noise_of_its_median_norm():
    with pytest.raises(ValueError, match="flame needs noise >= 0, got -1"):
        aggregate(E2, {"name": "flame", "noise": -1})
    x = sample(9, 20000) * 0.01 + 1
    plain = aggregate(x, {"name": "flame", "noise": 0.0})
    noisy = aggregate(x, {"name": "flame", "noise": 0.5}, generator=seeded())
    assert float((noisy - plain).std()) == pytest.approx(0.5 * 20000**0.5, rel=0.02)


def test_zeno_takes_the_steps_that_help():
    target = torch.tensor([1.0, 1.0], dtype=torch.float64)
    rows = torch.tensor([(1.0, 1), (0.9, 1.1), (-1, -1), (50, 50)], dtype=torch.float64)

    def loss(step):
        return float((step - target).square().sum())

    rule = {"name": "zeno", "f": 2, "loss": loss, "lr": 1.0, "rho": 0.0}
    assert build(rule).apply(rows).weights.tolist() == [0.5, 0.5, 0, 0]
    # Too small a step and no price of length: the huge one wins.
    careless = rule | {"lr": 0.01}
    assert build(careless).apply(rows).weights[3] == 0.5
    assert build(careless | {"rho": 0.1}).apply(rows).weights[3] == 0
    broken = rule | {"loss": lambda step: math.nan if step[0] > 40 else loss(step)}
    assert build(broken).apply(rows).weights[3] == 0


def test_rules_that_need_data_of_the_server_say_so():
    for name in ("fltrust", "zeno"):
        rule = {"name": name} | ({"f": 1} if name == "zeno" else {})
        with pytest.raises(ValueError, match=f"{name} needs .* set server.root_images"):
            aggregate(E2, rule)
    asked = []
    server = {"root": lambda: asked.append(1) or E2[0]}
    build("median").apply(E2, server=server)
    assert not asked  # computed only for a rule that wants it
    outcome = build("fltrust").apply(E2, server=server)
    assert torch.equal(outcome.aggregate, aggregate(E2, {"name": "fltrust", "root": E2[0]}))


def test_rsa_pulls_equally():
    x = torch.tensor([(1e9, -1.0), (0.1, -2), (0.0, 3)], dtype=torch.float64)
    assert close(aggregate(x, {"name": "rsa", "penalty": 0.5}), (1.0, -0.5))
    rooted = {"name": "rsa", "penalty": 0.5, "root": torch.tensor((1.0, 1.0))}
    assert close(aggregate(x, rooted), (2.0, 0.5))
    with pytest.raises(ValueError, match="rsa needs penalty > 0"):
        aggregate(x, {"name": "rsa", "penalty": 0.0})


SAFEGUARD = {
    "name": "safeguard", "window": 4, "threshold": 1.0, "short_window": 2, "short_threshold": 1.0
}  # fmt: skip


def test_safeguard_finds_who_drifts_slowly_and_never_forgets():
    rule, state = build(SAFEGUARD), None
    drift = torch.zeros(5, 3, dtype=torch.float64)
    drift[4] = 6.0  # a fifth of it each round: 1.2 sqrt(3) > 2 from the others in the first
    first = rule.apply(drift, state)
    assert first.weights.tolist() == [0.25] * 4 + [0]
    honest = rule.apply(torch.zeros(5, 3, dtype=torch.float64), first.state)
    assert honest.weights[4] == 0  # excluded for good
    slow = torch.zeros(5, 3, dtype=torch.float64)
    slow[4] = 4.0  # 0.8 sqrt(3) = 1.39 a round: within 2 at first, beyond it in the second
    one = rule.apply(slow, None)
    assert one.weights[4] == pytest.approx(0.2)
    assert rule.apply(slow, one.state).weights[4] == 0
    assert one.state["round"] == 1


def test_safeguard_sums_start_anew_with_their_window():
    rule = build(SAFEGUARD | {"window": 2})
    state = None
    for turn in range(4):
        outcome = rule.apply(torch.ones(3, 2, dtype=torch.float64), state)
        state = outcome.state
        assert torch.allclose(state["long"], torch.full((3, 2), (turn % 2 + 1) / 3.0).double())


def test_safeguard_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="1 <= short_window <= window"):
        aggregate(E2, SAFEGUARD | {"short_window": 9})
    rule = build(SAFEGUARD)
    away = torch.zeros(5, 3, dtype=torch.float64)
    away[4] = 6.0
    state = rule.apply(away, None).state
    with pytest.raises(ValueError, match="excluded all 1 clients"):
        rule.apply(away[4:], state, clients=[4])


def test_clipped_clustering_keeps_the_larger_side_and_remembers_norms():
    x = torch.tensor([(1.0, 0), (1, 0.1), (2, 0), (-1, 0), (-9, 0)], dtype=torch.float64)
    outcome = build("clipped_clustering").apply(x)
    assert (outcome.weights > 0).tolist() == [True, True, True, False, False]
    norms = x.norm(dim=1)
    assert torch.allclose(outcome.state, norms)
    clipped = x[:3] * (norms.median() / norms[:3]).clamp(max=1)[:, None]
    assert torch.allclose(outcome.aggregate, clipped.mean(0))
    second = build("clipped_clustering").apply(x, outcome.state)
    assert len(second.state) == 10


def test_distances_do_not_depend_on_three_captured_rows():
    """The rows that set the centre are an attacker's: the median of all rows takes over."""
    from fedrobust.aggregation.distances import squared_distances

    x = sample(15, 400, dtype=torch.float32) * 1e-3 + 30
    x[[0, 7, 14]] = -1e6
    exact = torch.cdist(x.double(), x.double()).square()
    honest = [i for i in range(15) if i not in (0, 7, 14)]
    found = squared_distances(x)[honest][:, honest]
    assert torch.allclose(found, exact[honest][:, honest], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("size", [1e16, 1e20, 3e38])
def test_distances_of_values_beyond_the_range_of_products(size):
    from fedrobust.aggregation.distances import squared_distances

    x = sample(9, 50, dtype=torch.float32)
    x[3], x[4] = size, -size / 2
    exact = torch.cdist(x.double(), x.double()).square()
    found = squared_distances(x)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[3], exact[3], rtol=1e-3)
    near = [0, 1, 2, 5, 6, 7, 8]
    assert torch.allclose(found[near][:, near], exact[near][:, near], rtol=1e-4)
