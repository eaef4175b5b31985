"""Sorting networks: every step list ranks what it promises, fused or not, pruned or whole."""

import numpy as np
import pytest

from fedrobust.aggregation.networks import FEWEST, MOST, lanes, network, tiles


def comparators(step):
    """The comparators that one step stands for."""
    a, b, c, d = step
    return [(a, b)] if c == d else [(a, b), (c, d), (c, b)]


def sorted_by(steps, columns):
    rows = columns.copy()
    for step in steps.tolist():
        for low, high in comparators(step):
            upper = np.minimum(rows[low], rows[high])
            rows[high] = np.maximum(rows[low], rows[high])
            rows[low] = upper
    return rows


def zeros_and_ones(n):
    """Columns that decide for all others, by the 0-1 principle: all of them, or many."""
    if n <= 12:
        return np.array(np.meshgrid(*[[0, 1]] * n, indexing="ij")).reshape(n, -1)
    return np.random.default_rng(n).integers(0, 2, (n, 4000))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 9, 12, 16, 20, 33, 100])
def test_steps_rank_what_is_asked_for(n):
    columns = zeros_and_ones(n)
    truth = np.sort(columns, axis=0)
    for first, last in {(0, n), ((n - 1) // 2, n // 2 + 1), (n // 5, n - n // 5), (0, 1)}:
        steps = tiles(n, first, last)
        np.testing.assert_array_equal(sorted_by(steps, columns)[first:last], truth[first:last])
        count = sum(len(comparators(step)) for step in steps.tolist())
        assert count == len(network(n, first, last))


def test_most_merges_of_a_large_network_run_three_at_once():
    steps = tiles(100, 49, 51)
    fused = sum(c != d for _, _, c, d in steps.tolist())
    assert fused >= 100 and len(steps) < 0.75 * len(network(100, 49, 51))


def test_the_columns_of_a_strip_are_a_power_of_two_in_bounds():
    for n in range(1, 2000):
        wide = lanes(n)
        assert FEWEST <= wide <= MOST and wide & (wide - 1) == 0
    assert [lanes(n) for n in (20, 100, 500)] == [512, 128, 256]
