"""Rows that a rule has rejected, or that cancel each other, must not steer what it returns."""

import pytest
import torch

from fedrobust.aggregation import RULES, aggregate, build
from fedrobust.attacks.fang import krum_size
from fedrobust.spec import parameters

PAIRS = [(1e3, 1e1), (1e6, 1e4), (1e10, 1e8)]


def sample(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def two_sizes(first, second, *, opposed=False):
    """Nine honest rows N(0, 1), and two attackers along e1, one far beyond the other."""
    rows = sample(11, 20)
    rows[0], rows[5] = 0, 0
    rows[0, 0], rows[5, 0] = first, -second if opposed else second
    honest = torch.tensor([i not in (0, 5) for i in range(11)])
    return rows, rows[honest].mean(0)


@pytest.mark.parametrize("sizes", PAIRS)
@pytest.mark.parametrize("opposed", [False, True])
def test_a_row_that_caf_removed_no_longer_sets_its_step(sizes, opposed):
    rows, honest = two_sizes(*sizes, opposed=opposed)
    assert float((aggregate(rows, {"name": "caf", "f": 2}) - honest).norm()) < 1


# Rules that promise a result near the honest ones whatever f rows hold; dnc does not (it removes
# by one ranking), rfa and centered_clipping start where far rows reach.
BOUNDED = ["median", "trimmed_mean", "meamed", "phocas", "krum", "multi_krum", "bulyan", "cge",
           "mda", "smea", "geometric_median", "caf"]  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("sizes", PAIRS)
@pytest.mark.parametrize("opposed", [False, True])
def test_attackers_of_two_sizes_do_not_shield_each_other(name, sizes, opposed):
    rows, honest = two_sizes(*sizes, opposed=opposed)
    f = {"f": 2} if "f" in parameters(RULES[name]) else {}
    assert float((aggregate(rows, {"name": name, **f}) - honest).norm()) < 5


def cancelling(dtype=torch.float64):
    """Fifteen rows; the first two, +A u and -A u + 3 s w, have a mean that is far by s only."""
    size, step = 1e8, 1e4
    rows = sample(15, 40, dtype=dtype)
    u, w = torch.zeros(40, dtype=dtype), torch.zeros(40, dtype=dtype)
    u[0], w[1] = 1, 1
    rows[0], rows[1] = size * u, -size * u + 3 * step * w
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_cancel_in_their_group_do_not_own_the_median_of_means(dtype):
    rows = cancelling(dtype)
    result = aggregate(rows, {"name": "median_of_means", "groups": 5})
    groups = torch.stack([part.mean(0) for part in rows.split(3)]).double()
    literal = aggregate(groups, "geometric_median")
    assert float((result.double() - literal).norm()) < 1e-2
    assert float(result.norm()) < 10


def test_rows_that_cancel_in_their_cluster_do_not_own_clustered_krum():
    """Five clusters by hand: the means' distances come from the means, not from the rows."""
    from fedrobust.aggregation.distances import centred_gram, squared_from

    rows = cancelling()
    mixing = torch.zeros(5, 15, dtype=torch.float64)
    for i in range(5):
        mixing[i, 3 * i : 3 * i + 3] = 1 / 3
    exact = torch.cdist(mixing @ rows, mixing @ rows).square()
    assert torch.allclose(squared_from(centred_gram(rows, mixing)), exact, rtol=1e-6)


def test_an_excluded_client_is_not_the_centre_of_safeguard():
    """Client 0, out since round one, comes back between the honest and a threshold away."""
    rule = build({
        "name": "safeguard", "window": 1, "threshold": 1.0, "short_window": 1,
        "short_threshold": 1.0, "factor": 1.0,
    })  # fmt: skip
    line = torch.tensor([[50.0], [0.0], [0.4], [0.8], [1.6]], dtype=torch.float64)
    first = rule.apply(line * torch.tensor([[1.0], [0], [0], [0], [0]]).double(), None)
    assert first.weights[0] == 0
    # Scaled by the 4 good clients: 0 is within 1 of rows 1, 2, 3 but its reach excludes row 4's.
    second = torch.tensor([[-0.2], [0.0], [0.4], [0.75], [1.0]], dtype=torch.float64) * 4
    outcome = rule.apply(second, first.state)
    assert outcome.weights[0] == 0
    assert bool((outcome.weights[1:] > 0).all())


@pytest.mark.parametrize(("h", "f"), [(14, 4), (9, 3), (20, 9)])
def test_fang_starts_at_the_bound_of_its_theorem(monkeypatch, h, f):
    """Where Krum picks at once, lambda is the bound itself: h - 2 neighbours over h - f - 1."""
    from fedrobust.attacks import fang

    monkeypatch.setattr(fang, "krum_picks", lambda *_: True)
    honest = sample(h, 6)
    distances = torch.cdist(honest, honest).sort(1).values[:, 1 : h - 1].sum(1)
    expected = distances.min() / (h - f - 1) + honest.norm(dim=1).max()
    sign = torch.where(honest.mean(0) < 0, -1.0, 1.0).double()
    found = krum_size(honest, sign, h + f, f)
    assert found == pytest.approx(float(expected) / 6**0.5, rel=1e-9)
