"""The read that guards a rule: what it finds is right, nothing is read twice, no result changes."""

import pytest
import torch

from fedrobust.aggregation import aggregate, gram, kernels, preaggregate, reads
from fedrobust.aggregation.distances import centred_gram
from fedrobust.aggregation.record import nothing
from fedrobust.aggregation.survey import at_hand, known, survey
from fedrobust.aggregation.tables import PREAGGREGATOR_RECORDS, RULE_RECORDS

SETTINGS = {"f": 2, "bound": 40.0, "root": torch.ones(1500), "model": torch.ones(1500),
            "layers": [["weight", [15, 100]]], "loss": lambda step: float(step.sum()),
            "threshold": 50.0}  # fmt: skip
RECORDS = RULE_RECORDS | PREAGGREGATOR_RECORDS
LOOKING = [name for name, record in RECORDS.items() if record.looks_at({}) != ""]


def sample(n=15, d=1500, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    rows[:2] *= 3
    return rows


def call(name, rows):
    given = RECORDS[name].settings
    spec = {"name": name} | {key: SETTINGS[key] for key in given if key in SETTINGS}
    function = preaggregate if name in PREAGGREGATOR_RECORDS else aggregate
    return function(rows, spec, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def passes(monkeypatch):
    """Names of the kernels that went over a whole matrix, in order."""
    done = []
    for module in (gram, kernels, reads):
        real = module.in_parts

        def counted(kernel, matrix, *rest, real=real, **sizes):
            if matrix.shape == (15, 1500):
                done.append(kernel.__name__)
            return real(kernel, matrix, *rest, **sizes)

        monkeypatch.setattr(module, "in_parts", counted)
    return done


@pytest.mark.parametrize("name", LOOKING)
def test_what_a_rule_looks_at_costs_one_read_with_the_guard(name, passes):
    call(name, sample())
    kernel = {"distances": "_gram", "angles": "_gram", "lengths": "_lengths", "signs": "_sign_sums"}
    assert passes[0] == kernel[RECORDS[name].looks_at({})]
    assert passes.count(passes[0]) == 1
    results = 1 if name in PREAGGREGATOR_RECORDS else 0  # a result that is a matrix is guarded, too
    assert passes.count("_largest_bits") == results


def test_the_rules_that_look_are_many():
    assert len(LOOKING) >= 24


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_at_hand_changes_no_result(name, damaged, monkeypatch):
    rows = sample()
    if damaged:
        rows[4, 7] = float("nan")
    fused = call(name, rows)
    for record in RECORDS.values():
        monkeypatch.setitem(record.__dict__, "looks_at", nothing)
    assert torch.allclose(call(name, rows), fused, rtol=1e-5, atol=1e-6)


def test_only_the_very_rows_that_were_read_are_known():
    rows = sample()
    found = survey(rows, "distances")
    assert known(rows) is None
    with at_hand(found):
        assert known(rows) is found
        assert known(rows.clone()) is None and known(rows[1:]) is None
    assert known(rows) is None


@pytest.mark.parametrize("n", [2, 3, 4, 5, 9, 20])
@pytest.mark.parametrize("d", [1, 7, 511, 512, 513, 5003])
def test_products_are_those_of_float64(n, d):
    rows = sample(n, d, seed=n) + 5
    three = (0, n // 2, n - 1)
    centre = rows[list(three)].median(0).values
    found, largest = gram.gram(rows, three=three)
    offsets = (rows - centre).double()
    expected = offsets @ offsets.T
    assert torch.allclose(found, expected, rtol=0, atol=2e-6 * float(expected.diagonal().max()))
    assert torch.equal(found, found.T)
    assert torch.equal(largest, rows.abs().amax(1))
    assert torch.equal(gram.gram(rows, centre=centre)[0], found)


def test_products_about_the_origin_keep_infinity_in_its_row():
    rows = sample(6, 900)
    rows[3, 700] = float("-inf")
    found, largest = gram.gram(rows)
    assert largest.isfinite().tolist() == [i != 3 for i in range(6)]
    whole = [i for i in range(6) if i != 3]
    expected = rows[whole].double() @ rows[whole].double().T
    assert torch.allclose(found[whole][:, whole], expected, rtol=1e-5, atol=1e-3)


def test_mixed_rows_are_multiplied_without_being_made():
    rows = sample(11, 1234) + 2
    mixing = torch.zeros(4, 11, dtype=torch.float64)
    mixing[0, :3], mixing[1, 3:5], mixing[2, 5], mixing[3, 6:] = 1 / 3, 0.5, 1, 0.2
    means = mixing @ rows.double()
    offsets = means - means[[0, 2, 3]].median(0).values
    found = centred_gram(rows, mixing)
    assert torch.allclose(found, offsets @ offsets.T, rtol=1e-4, atol=1e-2)


def test_signs_count_zeros_of_either_sign_as_none():
    rows = torch.tensor([[0.0, -0.0, 1e-40, -3.0], [0.0, 0.0, 2.0, -1.0], [5.0, 0.0, -1.0, 1.0]])
    found, largest = reads.signs_and_largest(rows)
    assert found.tolist() == [1.0, 0.0, 1.0, -1.0]
    assert largest.tolist() == [3.0, 2.0, 5.0]


def test_all_finite_reads_bits():
    vector = torch.randn(1001)
    assert reads.all_finite(vector) and reads.all_finite(vector.double())
    for bad in (float("nan"), float("inf"), float("-inf")):
        for kind in (torch.float32, torch.float64, torch.float16):
            spoiled = vector.to(kind)
            spoiled[1000] = bad
            assert not reads.all_finite(spoiled)
