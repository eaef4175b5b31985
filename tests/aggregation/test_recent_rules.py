"""LASA, AlignIns, FedRDF and the filters: worked values, literal versions, what breaks them."""

import pytest
import textbook
import torch

from fedrobust.aggregation import aggregate, build, rule_record
from fedrobust.aggregation.alignment import deviations
from fedrobust.aggregation.recent import skewed

LAYERS = (("weight", (4, 3)), ("bias", (3,)), ("kernel", (2, 1, 2, 2)), ("scale", (2,)))
D = 25


def sample(n=12, d=D, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=source, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_lasa_is_its_authors_program(seed, sparsity):
    x = sample(11 + seed % 2, seed=seed)
    given = {"layers": LAYERS, "sparsity": sparsity, "norm_radius": 1.2, "sign_radius": 0.8}
    expected = torch.from_numpy(textbook.lasa(x.numpy().copy(), **given))
    assert torch.allclose(aggregate(x, {"name": "lasa", **given}), expected, atol=1e-12)


def test_lasa_worked():
    """Lengths 5, 5 and 50 are cut to 5; of two weights one is kept, or both."""
    x = torch.tensor([[3.0, 4, 0], [4, 3, 0], [30, 40, 0]], dtype=torch.float64)
    spec = {"name": "lasa", "layers": (("w", (1, 2)), ("b", (1,))), "sparsity": 0.4}
    # int(2 * 0.6) = 1 weight stays, and what equals the least kept goes: nothing is above it.
    assert aggregate(x, spec).tolist() == [0.0, 0.0, 0.0]
    spec["sparsity"] = 0.0
    found = aggregate(x, spec)  # norms are alike: all of them count
    assert torch.allclose(found, torch.tensor([10 / 3, 11 / 3, 0.0], dtype=torch.float64))


def test_deviations_of_values_that_are_alike_are_none():
    assert deviations(torch.tensor([2.0, 2.0, 2.0]).double()).tolist() == [0, 0, 0]
    assert deviations(torch.tensor([1.0, 1 + 1e-15, 1.0]).double()).tolist() == [0, 0, 0]
    found = deviations(torch.tensor([0.0, 1.0, 2.0, 9.0]).double())  # median 1.5, deviation 3.5355
    assert found.tolist() == pytest.approx([0.424264, 0.141421, 0.141421, 2.12132], abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_alignins_is_its_authors_program(seed):
    x = sample(10 + seed % 2, seed=seed)
    given = {"share": 0.4, "sign_radius": 1.1, "direction_radius": 1.3}
    given["model"] = sample(1, seed=99)[0]
    literal = given | {"model": given["model"].numpy()}
    expected = torch.from_numpy(textbook.alignins(x.numpy(), **literal))
    assert torch.allclose(aggregate(x, {"name": "alignins", **given}), expected, atol=1e-12)


def test_alignins_keeps_the_model_where_nobody_is_usual():
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0.1], [0.1, -1]])
    spec = {"name": "alignins", "model": torch.tensor([1.0, 0.5]), "direction_radius": 1e-6}
    assert aggregate(x, spec).tolist() == [0.0, 0.0]
    assert build(spec).apply(x).weights.tolist() == [0, 0, 0, 0]


def test_alignins_follows_near_half_of_the_clients():
    """Seven of fifteen who look usual are the usual ones: theirs is the median length."""
    honest = sample(8, 40) * 1.0
    start = torch.ones(40, dtype=torch.float64)
    far = 1e6 * honest.mean(0) / honest.mean(0).norm()
    cosines = honest @ start / honest.norm(dim=1) / start.norm()
    axis = start / start.norm()
    across = far - (far @ axis) * axis
    aim = float(cosines.median())
    row = 1e6 * (aim * axis + (1 - aim**2) ** 0.5 * across / across.norm())
    x = torch.cat([honest, row.expand(7, -1)])
    found = aggregate(x, {"name": "alignins", "model": start, "sign_radius": 1e3})
    assert found.norm() > 1e5
    assert not rule_record("alignins").bounded


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_fedrdf_is_a_median_written_as_a_fourier_transform(n):
    x = sample(n, 6, seed=n)
    assert torch.equal(aggregate(x, "fedrdf"), torch.from_numpy(textbook.fedrdf(x.numpy())))


def test_fedrdfs_test_of_skewness_sees_no_attack():
    """A random split of any values has one distribution: at most 5 % of the tests fail."""
    clean = sample(20, 400, seed=3)
    attacked = clean.clone()
    attacked[:6] = 1e6
    for rows in (clean, attacked):
        shares = [skewed(rows, 400, torch.Generator().manual_seed(s)) for s in range(3)]
        assert sum(shares) / 3 < 0.07
    switched = {"name": "fedrdf", "threshold": 0.2}
    assert aggregate(attacked, switched).norm() > 1e5  # the mean
    assert aggregate(attacked, "fedrdf").norm() < 1e3
    assert skewed(clean[:3], 400, None) == 1.0  # three rows cannot be split


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [7, 10, 1000])
def test_filtering_agrees_with_the_textbook(seed, chunk):
    x = sample(12, 20, seed=seed) * torch.linspace(0.5, 4, 20)
    x[:2] += 6
    given = {"f": 2, "variance": 0.7, "expansion": 9.0, "chunk": chunk}
    expected = torch.from_numpy(textbook.filtering(x.numpy(), **given))
    assert torch.allclose(aggregate(x, {"name": "filtering", **given}), expected, atol=1e-9)


def test_filtering_worked():
    """0, 0, 0, 4: variance 3 about the mean 1; scores 1, 1, 1, 9; weights 8/9, 8/9, 8/9, 0."""
    x = torch.tensor([[0.0], [0.0], [0.0], [4.0]], dtype=torch.float64)
    spec = {"name": "filtering", "f": 1, "expansion": 1.0}
    assert aggregate(x, spec | {"variance": 3.0}).tolist() == [1.0]
    assert aggregate(x, spec | {"variance": 2.99}).tolist() == [0.0]
    both = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])  # all stick out alike: nobody goes
    assert aggregate(both, spec | {"variance": 0.1}).tolist() == [0.0]


@pytest.mark.parametrize("f", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_randeigen_agrees_with_the_textbook(f, seed):
    x = sample(11, 9, seed=seed)
    x[:f] += 3
    expected = torch.from_numpy(textbook.randeigen(x.numpy(), f))
    spec = {"name": "randeigen", "f": f}  # 9 coordinates are not projected
    assert torch.allclose(aggregate(x, spec), expected, atol=1e-9)


def test_randeigen_finds_colluders_in_a_projection():
    x = sample(20, 5000, seed=1)
    x[:4] += 1
    weights = build({"name": "randeigen", "f": 4}).apply(x).weights
    assert weights[:4].sum() < 0.05 and weights[4:].min() > 0.05


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"name": "lasa"}, "lasa needs 'layers'"),
        ({"name": "alignins"}, "alignins needs 'model'"),
        ({"name": "lasa", "layers": (("w", (5, 4)),)}, "25 values in all, got 20: w"),
        ({"name": "lasa", "layers": 3}, "pairs, got 3"),
        ({"name": "lasa", "layers": LAYERS, "sparsity": 1.0}, "1 - sparsity > 0"),
        ({"name": "lasa", "layers": LAYERS, "norm_radius": 0}, "norm_radius > 0"),
        ({"name": "alignins", "model": torch.ones(3)}, r"model of shape \(25,\)"),
        ({"name": "alignins", "model": torch.full((D,), torch.nan)}, "a finite model"),
        ({"name": "alignins", "model": torch.ones(D), "share": 0.0}, "share > 0"),
        ({"name": "fedrdf", "threshold": 2.0}, "threshold >= 0 and <= 1"),
        ({"name": "fedrdf", "coordinates": 0}, "whole coordinates"),
        ({"name": "filtering", "f": 1, "variance": 0.0}, "variance > 0"),
        ({"name": "filtering", "f": 1, "variance": 1.0, "chunk": 0}, "whole chunk"),
        ({"name": "filtering", "f": 1, "variance": 1.0, "expansion": 0.5}, "expansion >= 1"),
        ({"name": "filtering", "f": 6, "variance": 1.0}, "at least 13 updates"),
        ({"name": "randeigen", "f": 1, "dimension": 0}, "whole dimension"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        aggregate(sample(), bad)


def test_layers_may_be_lists_of_a_file_or_a_table():
    x = sample()
    found = aggregate(x, {"name": "lasa", "layers": LAYERS})
    listed = [[name, list(shape)] for name, shape in LAYERS]
    for layers in (listed, dict(LAYERS)):
        assert torch.equal(aggregate(x, {"name": "lasa", "layers": layers}), found)
