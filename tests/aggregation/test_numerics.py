"""What enters a rule or an attack: any real type, any size; the rest is refused by name."""

import math
import warnings

import numpy as np
import pytest
import torch

from experiments.benchmarks import numerics
from fedrobust.aggregation import PREAGGREGATORS, RULES, aggregate, build, preaggregate
from fedrobust.aggregation.tables import RULE_RECORDS
from fedrobust.attacks import ATTACKS, craft


def sample(n=11, d=12, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spec(name):
    return numerics.spec_of(name, f=2, n=11, d=12)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", [*RULES, *PREAGGREGATORS])
def test_the_table_of_numerics_holds(name):
    """Every case gives the right finite result, or one of the errors that the case allows."""
    rows = list(numerics.rows_of(name, n=11, d=12))
    assert len(rows) >= len(numerics.CASES) == 27
    assert [row for row in rows if row["verdict"].startswith("wrong")] == []


def test_the_table_notices_what_is_wrong(monkeypatch):
    monkeypatch.setitem(RULES, "broken", lambda updates: updates.sum(0) / 0)
    verdicts = {row["case"]: row["verdict"] for row in numerics.rows_of("broken", n=11, d=12)}
    assert verdicts["plain"].startswith("wrong")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(name, dtype):
    x = (sample() * 300).to(dtype)  # their squares overflow float16
    result = aggregate(x, spec(name), generator=seeded())
    assert result.dtype == dtype
    wide = aggregate(x.float(), spec(name), generator=seeded())
    assert torch.equal(result, wide.to(dtype))


@pytest.mark.parametrize("name", ["median", "krum", "bulyan", "flame", "clipped_clustering"])
def test_arrays_lists_and_gradients_are_taken(name):
    x = sample()
    expected = aggregate(x, spec(name), generator=seeded())
    given = [
        x.numpy(), x.numpy()[::-1][::-1], x.numpy().astype(">f4"), list(x), [r.numpy() for r in x],
        x.clone().requires_grad_(), torch.cat([x, x], 1)[:, :12],
    ]  # fmt: skip
    for rows in given:
        result = aggregate(rows, spec(name), generator=seeded())
        assert not result.requires_grad
        assert torch.allclose(result, expected)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, 2).int(), "int32"), (np.zeros((3, 2), dtype=int), "int64"),
        (torch.zeros(3, 2, dtype=torch.complex64), "complex64"), (torch.zeros(3, 2) > 0, "bool"),
        (torch.eye(3).to_sparse(), "sparse"), (torch.zeros(3), r"\(3,\)"),
        ("rows", "got str"), (np.zeros((3, 2), dtype=np.longdouble), "longdouble|float128"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_real_matrix_is_refused_by_name(bad, words):
    for call in (lambda: aggregate(bad, "mean"), lambda: preaggregate(bad, spec("nnm"))):
        with pytest.raises(TypeError, match=words):
            call()


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="rows of one length"):
        aggregate([torch.zeros(3), torch.zeros(4)], "mean")
    with pytest.raises(ValueError, match="rows of one length"):
        aggregate([[1.0, 2.0], [1.0]], "mean")
    with pytest.raises(ValueError, match="at least one coordinate"):
        aggregate(torch.zeros(3, 0), "mean")


@pytest.mark.parametrize("name", PREAGGREGATORS)
def test_preaggregators_set_aside_what_is_not_finite(name):
    x = sample(7)
    x[3, 4] = math.nan
    result = preaggregate(x, spec(name), generator=seeded())
    kept = torch.cat([x[:3], x[4:]])
    fewer = spec(name) | ({"f": 1} if "f" in spec(name) else {})
    assert torch.isfinite(result).all()
    assert torch.equal(result, preaggregate(kept, fewer, generator=seeded()))


@pytest.mark.parametrize("size", [1e-200, 1e-170, 1e160, 1e200, 1e290])
@pytest.mark.parametrize("name", [n for n, r in RULE_RECORDS.items() if r.follows_scale])
def test_rules_follow_the_scale_to_the_ends_of_float64(name, size):
    x = sample(dtype=torch.float64)
    expected = aggregate(x, spec(name), generator=seeded())
    found = aggregate(x * size, spec(name), generator=seeded())
    assert torch.allclose(found / size, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, r in RULE_RECORDS.items() if r.follows_scale])
def test_small_float32_values_keep_their_distances(name):
    x = sample()
    x[:2] += 100
    expected = aggregate(x, spec(name), generator=seeded())
    found = aggregate(x * 1e-25, spec(name), generator=seeded())
    assert torch.allclose(found * 1e25, expected, rtol=1e-4, atol=1e-4)


def test_fltrust_bears_finite_rows_of_any_size():
    x, root = sample(), torch.ones(12)
    x[0], x[1] = 1e38, -1e38
    rule = {"name": "fltrust", "root": root}
    assert torch.allclose(
        aggregate(x, rule), aggregate(x.double(), rule).float(), rtol=1e-4, atol=1e-6
    )


def test_a_far_row_does_not_poison_the_memory_of_foolsgold():
    rule, x = build("foolsgold"), sample()
    x[0] = 3e38
    state = None
    for _ in range(3):
        outcome = rule.apply(x, state)
        state = outcome.state
        assert torch.isfinite(state["sums"]).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_take_halves_arrays_and_gradients(name):
    x = sample(9)
    given = {"n": 11, "f": 2, "rule": "median", "model": torch.full((12,), 1e-3)}
    expected = craft(x, name, **given)
    for rows in (x.numpy(), list(x), x.clone().requires_grad_()):
        assert torch.equal(craft(rows, name, **given).nan_to_num(), expected.nan_to_num())
    half = craft(x.half(), name, **given)
    assert half.dtype == torch.float16
    wide = craft(x.half().float(), name, **given)
    assert torch.equal(half.nan_to_num(), wide.half().nan_to_num())


def test_attacks_never_send_nan_where_they_mean_a_number():
    x = sample(9, dtype=torch.float64) * 1e200
    for name in ATTACKS:
        try:
            sent = craft(x, name, n=11, f=2, rule="median", model=torch.ones(12))
        except ValueError as error:
            assert "finite" in str(error)
            continue
        assert name in ("nan", "inf") or torch.isfinite(sent).all(), name
    with pytest.raises(ValueError, match="does not fit into float16"):
        craft(sample(9).half(), {"name": "constant", "value": 1e6}, n=11, f=2)


# Quiet surprises

REFUSED = [
    {"name": "dnc", "f": 2, "coordinates": 0}, {"name": "dnc", "f": 2, "iterations": 1.5},
    {"name": "dnc", "f": 2, "c": "1"}, {"name": "geometric_median", "tolerance": -1},
    {"name": "geometric_median", "max_iterations": 0}, {"name": "multi_krum", "f": 2, "m": True},
    {"name": "multi_krum", "f": 2, "m": 2.0}, {"name": "rfa", "nu": "small"},
    {"name": "rfa", "iterations": True}, {"name": "centered_clipping", "tau": math.nan},
    {"name": "norm_clipping", "bound": math.inf}, {"name": "median_of_means", "groups": 2.5},
    {"name": "sign_guard", "share": 2.0}, {"name": "sign_guard", "low": 2.0, "high": 1.0},
    {"name": "flame", "noise": math.nan}, {"name": "foolsgold", "normalise": "no"},
    {"name": "krum", "f": 2, "variant": 3}, {"name": "krum", "f": 2.0},
    {"name": "hierarchical_clustering_krum", "f": 2, "clusters": 0},
    {"name": "rsa", "penalty": None}, {"name": "median_of_means", "groups": None},
]  # fmt: skip


@pytest.mark.parametrize("rule", REFUSED, ids=str)
def test_values_that_mean_nothing_are_refused_in_a_sentence(rule):
    with pytest.raises(ValueError, match=r"need"):
        aggregate(sample(), rule)


@pytest.mark.parametrize("size", [0, True, 1.5, "2", None])
def test_bucketing_needs_a_whole_size(size):
    with pytest.raises(ValueError, match="bucketing needs a whole size of at least 1"):
        aggregate(sample(), "mean", pre=[{"name": "bucketing", "size": size}])


def test_sign_guard_bears_a_majority_of_zeros():
    x = sample()
    x[:7] = 0
    assert not aggregate(x, "sign_guard", generator=seeded()).any()


def test_equal_clusters_are_decided_by_the_first_row():
    """Turned by 0, 1, ... places: whoever stands first decides, as the docstring says."""
    side = torch.tensor([(1.0, 0.1), (1, 0.2), (1, 0.3), (-1, 0.1), (-1, 0.2), (-1, 0.3)]).double()
    for turn in range(6):
        rows = side.roll(turn, 0)
        result = aggregate(rows, "clipped_clustering")
        assert torch.sign(result[0]) == torch.sign(rows[0, 0])


def test_foolsgold_of_nothing_but_twins_moves_nothing():
    for seed in range(5):
        for dtype in (torch.float32, torch.float64):
            x = sample(4, 50, seed=seed, dtype=dtype)
            outcome = build("foolsgold").apply(torch.cat([x, x]))
            assert not outcome.weights.any()


def slow_rows():
    """Three honest rows and one that is the geometric median itself: steps shrink like 1 / t."""
    return torch.tensor([(0.0, 0), (1, 0), (-0.5, 3**0.5 / 2), (-0.5, -(3**0.5) / 2)]).double()


def test_the_geometric_median_says_when_it_has_not_converged():
    with pytest.warns(RuntimeWarning, match="geometric_median has not converged after 3 steps"):
        aggregate(sample(), {"name": "geometric_median", "max_iterations": 3})


def test_a_geometric_median_beside_equal_rows_is_found_in_few_steps():
    """Weiszfeld's steps alone take 10,000 here, and end with a warning."""
    honest = torch.randn(39, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, deviation = honest.mean(0), honest.std(0)
    for size in (0.308, 0.324, 0.34):
        rows = torch.cat([honest, (mean - size * deviation).expand(12, -1)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = aggregate(rows, {"name": "geometric_median", "max_iterations": 100})
        offsets = found - rows
        distances = offsets.norm(dim=1)
        apart = distances > 1e-5
        pull = (offsets[apart] / distances[apart, None]).sum(0).norm()
        assert pull <= float((~apart).sum()) + 1e-3, size


def test_a_row_that_is_the_geometric_median_is_found():
    x = torch.tensor([(0.0, 0), (1, 0), (-1, 0.0), (0, 1e-3)]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = aggregate(x, {"name": "geometric_median", "max_iterations": 30})
    assert torch.equal(result, x[0]) or torch.allclose(result, x[3], atol=1e-2)


def test_rfa_says_that_one_row_moves_it_and_its_median_start_holds():
    x = sample(dtype=torch.float64)
    honest = x[2:].mean(0)
    x[:2] = 1e6
    assert float((aggregate(x, "rfa") - honest).norm()) > 1e3
    assert float((aggregate(x, {"name": "rfa", "start": "median"}) - honest).norm()) < 3
    assert "one far row moves it" in RULE_RECORDS["rfa"].what


@pytest.mark.parametrize(
    ("variant", "fewest"), [("byzfl", 5), ("byzpy", 4), ("flower", 1), ("paper", 7), ("epfl", 7)]
)
def test_a_variant_takes_as_few_updates_as_its_library(variant, fewest):
    for name in ("krum", "multi_krum"):
        rule = {"name": name, "f": 2, "variant": variant}
        rule |= {"m": 1} if name == "multi_krum" else {}
        aggregate(sample(fewest), rule)
        if fewest > 1:
            with pytest.raises(ValueError, match=f"needs at least {fewest} updates"):
                aggregate(sample(fewest - 1), rule)


def test_meamed_around_the_lower_median():
    x = torch.tensor([[0.0], [1.0], [3.0], [10.0]]).double()
    assert float(aggregate(x, {"name": "meamed", "f": 1})) == pytest.approx(4 / 3)
    lower = torch.tensor([[0.0], [4.0], [5.0], [10.0]]).double()
    found = aggregate(lower, {"name": "meamed", "f": 1, "variant": "lower"})
    assert float(found) == pytest.approx(3)  # around 4: 4, 5, 0
    assert float(aggregate(lower, {"name": "meamed", "f": 1})) == pytest.approx(3)
    apart = torch.tensor([[0.0], [4.0], [8.1], [9.0]]).double()
    assert float(aggregate(apart, {"name": "meamed", "f": 1, "variant": "lower"})) == pytest.approx(
        (0 + 4 + 8.1) / 3
    )
    assert float(aggregate(apart, {"name": "meamed", "f": 1})) == pytest.approx((4 + 8.1 + 9) / 3)
