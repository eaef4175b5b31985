"""Bisection on the bits of floats finds what a sort finds."""

import pytest
import torch

from fedrobust.aggregation import RULES, aggregate, columns, distances, ordered_bits

DTYPES = (torch.float32, torch.float64)
SORTING = ("median", "trimmed_mean", "meamed", "phocas", "bulyan", "krum")


def drawn(n, d, dtype, *, ties=False):
    source = torch.Generator().manual_seed(n + d)
    values = torch.randn(n, d, generator=source, dtype=dtype)
    return (2 * values).round() if ties else values


def awkward(dtype):
    """Columns of zeros of both signs, infinities, the smallest and the largest values."""
    limits = torch.finfo(dtype)
    tiny = limits.smallest_normal * limits.eps  # subnormal
    one = [-0.0, 0.0, tiny, -tiny, limits.max, -limits.max, float("inf"), -float("inf"), 1.0, -1.0]
    column = torch.tensor(one, dtype=dtype)
    return torch.stack([column, column.flip(0), column.roll(3), torch.full_like(column, -2.5)], 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_ordered_as_the_values_and_give_them_back(dtype):
    values = awkward(dtype).sort(0).values
    ordered = ordered_bits.keys(values)
    assert (ordered.diff(dim=0) >= 0).all() or (values == 0).sum() > 1
    both = ordered.sort(0).values
    assert torch.equal(ordered_bits.values_of(both, dtype), values)
    with_nan = torch.tensor([[float("nan")], [float("inf")], [-float("nan")], [0.0]], dtype=dtype)
    assert ordered_bits.keys(with_nan)[:, 0].argsort()[:2].tolist() == [3, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 65])
@pytest.mark.parametrize("ties", [False, True])
def test_every_rank_is_the_sorts(dtype, n, ties):
    values = drawn(n, 9, dtype, ties=ties)
    keys, expected = ordered_bits.keys(values), values.sort(0).values
    for rank in range(n):
        found = ordered_bits.values_of(ordered_bits.key_of_rank(keys, rank), dtype)
        assert torch.equal(found, expected[rank])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_of_awkward_values(dtype):
    values = awkward(dtype)
    keys, expected = ordered_bits.keys(values), values.sort(0).values
    for rank in range(len(values)):
        found = ordered_bits.values_of(ordered_bits.key_of_rank(keys, rank), dtype)
        assert torch.equal(found, expected[rank])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 9, 64])
def test_means_of_ranks_and_of_the_nearest(dtype, ties, n):
    values = drawn(n, 40, dtype, ties=ties)
    for first in range(0, n, 3):
        for last in (first + 1, (first + n + 1) // 2, n):
            if last > first:
                found = ordered_bits.rank_mean(values, first, last)
                expected = columns.averaged(values.sort(0).values[first:last])
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    centre = values.median(0).values
    for keep in (1, n // 2, n):
        order = (values - centre).abs().sort(dim=0, stable=True).indices[:keep]
        expected = columns.averaged(values.gather(0, order))
        found = ordered_bits.nearest_mean(values, centre, keep)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_values_do_not_overflow_their_sum(dtype):
    values = torch.full((70, 3), torch.finfo(dtype).max, dtype=dtype)
    values[:, 1] = torch.linspace(0.9, 1.0, 70, dtype=dtype) * torch.finfo(dtype).max
    assert torch.isfinite(ordered_bits.rank_mean(values, 5, 65)).all()
    assert torch.isfinite(ordered_bits.nearest_mean(values, values[0], 60)).all()


@pytest.mark.parametrize("name", SORTING)
def test_rules_give_the_same_by_either_way(name, monkeypatch):
    updates = drawn(40, 300, torch.float32)
    spec = {"name": name} if name == "median" else {"name": name, "f": 8}
    expected = aggregate(updates, spec)
    called = []
    monkeypatch.setattr(columns.kernels, "fits", lambda updates: False)
    monkeypatch.setattr(ordered_bits, "pays", lambda updates: called.append(name) or True)
    torch.testing.assert_close(aggregate(updates, spec), expected, rtol=1e-5, atol=1e-6)
    assert name in RULES and bool(called) == (name != "krum")


def test_it_is_taken_on_a_gpu_alone():
    assert not ordered_bits.pays(torch.zeros(1000, 2))


@pytest.mark.parametrize("d", [10, 4096, 3 * 4096 + 5])
def test_products_at_once_are_those_of_block_after_block(d, monkeypatch):
    updates = drawn(7, d, torch.float32)
    centre = updates[0] / 2
    monkeypatch.setattr(distances, "block_values", lambda device, on_cpu: 2 * 7 * distances.WIDTH)
    monkeypatch.setattr(distances.kernels, "fits", lambda updates: False)
    expected = distances.products(updates, centre)
    torch.testing.assert_close(
        distances.products_at_once(updates, centre), expected, rtol=1e-6, atol=1e-6
    )
    exact = (updates - centre).double() @ (updates - centre).double().T
    torch.testing.assert_close(expected, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [ordered_bits.FROM - 1, ordered_bits.FROM, 200])
@pytest.mark.parametrize("name", SORTING)
def test_a_gpu_gives_the_same_for_few_and_for_many_clients(name, n):
    updates = drawn(n, 9000, torch.float32)
    spec = {"name": name} if name == "median" else {"name": name, "f": n // 5}
    found = aggregate(updates.cuda(), spec)
    assert ordered_bits.pays(updates.cuda()) == (n >= ordered_bits.FROM)
    torch.testing.assert_close(found.cpu(), aggregate(updates, spec), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_multiplies_many_blocks_at_once_as_precisely():
    updates = drawn(30, 5 * 4096 + 7, torch.float32)
    centre = updates[0] / 2
    exact = (updates - centre).double() @ (updates - centre).double().T
    found = distances.products(updates.cuda(), centre.cuda())
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)
