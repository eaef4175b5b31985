"""The engine trains ALIE's setting as a plain loop does that was written from its description."""

import numpy as np
import pytest
import torch

from experiments.papers.alie import parity, plain, table1, table2
from fedrobust.aggregation import aggregate
from fedrobust.data import load

SETTING = plain.Setting(n=15, m=3, z=1.5)
RULES = [(kind, name) for kind in parity.RULES for name in plain.PROGRAM]


@pytest.fixture(scope="module")
def small():
    data = load("fashionmnist-sample")
    return parity.case(data, "mlp", SETTING, batch=16, rounds=4)


@pytest.mark.parametrize(("kind", "name"), RULES)
def test_both_descriptions_differ_by_rounding_alone(small, kind, name):
    found = parity.differences(small, kind, name)
    assert len(found) == 4 and max(found) < 1e-12


def test_what_is_looked_for_would_be_seen(small):
    """Another count of neighbours or of values kept is far from rounding."""
    program = list(parity.described(small, plain.PROGRAM["trimmed_mean"]))[-1]
    paper = list(parity.described(small, plain.PAPER["trimmed_mean"]))[-1]
    assert float((program - paper).abs().max() / program.abs().max()) > 1e-4


@pytest.mark.parametrize("kind", ["program", "paper"])
@pytest.mark.parametrize("name", ["trimmed_mean", "krum", "bulyan"])
def test_the_rules_agree_at_the_papers_size(kind, name):
    """51 updates, 12 of them colluders': 38 or 27 values, 39 or 37 neighbours, 2 or 3 values."""
    sent = np.random.default_rng(1).normal(size=(51, 40))
    sent[:12] = plain.little(sent[:12], 1.5)
    spec, rule = (table[name] for table in parity.RULES[kind])
    ours = aggregate(torch.from_numpy(sent), {**spec, "f": 12})
    torch.testing.assert_close(ours, torch.from_numpy(rule(sent, 12)), rtol=1e-12, atol=1e-12)


def test_a_worker_repeats_its_batches_or_shuffles_them():
    drawn = np.random.default_rng(1)
    share = plain.shares(100, 7, drawn)
    assert {len(one) for one in share} == {15} and len(set(np.concatenate(share))) == 100
    fixed = plain.batches(share[0], 4, fixed=True, generator=drawn)
    first = [next(fixed).tolist() for _ in range(8)]
    assert first[:4] == first[4:] and [len(batch) for batch in first[:4]] == [4, 4, 4, 3]
    moved = plain.batches(share[0], 4, fixed=False, generator=drawn)
    passes = [np.concatenate([next(moved) for _ in range(4)]) for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) and passes[0].tolist() != passes[1].tolist()


def test_the_cells_are_those_of_the_table():
    cells = table1.rules(seed=1)
    assert len(cells) == len(set(cells)) == 14
    assert {(c.rules, c.rule) for c in cells if c.fixed} == {
        (c.rules, c.rule) for c in cells if not c.fixed
    }
    changed = table1.search(seed=1)
    assert len(changed) == len(set(changed)) and table1.Cell() not in changed


def test_finished_cells_are_left_out(tmp_path):
    out, cells = tmp_path / "out.jsonl", table1.rules(seed=1)[:3]
    assert len(list(table1.missing(cells, out, 10))) == 3
    row = {"cell": table1.asdict(table1.replace(cells[1], rounds=10))}
    out.write_text(table1.json.dumps(row) + "\n")
    assert [cell.rule for cell in table1.missing(cells, out, 10)] == [cells[0].rule, cells[2].rule]


def test_what_was_measured_is_told_by_what_differs():
    cell = table1.asdict(table1.Cell(z=1.0, rounds=60))
    told = table1.table([{"cell": cell, "best": 23.57, "curve": [11.0, 23.57, 16.0]}])
    assert told.splitlines()[-1] == "| z = 1.0 | 60 | 23.6 | 16.0 | 1 |"
    looks = [{"benign": b, "held_out": 100.0 - b, "trained_on": 90.0} for b in (10.0, 30.0, 20.0)]
    told = table2.table([{"cell": "all", "seed": 1, "rounds": 60, "curve": looks}])
    last = "| all | 60 | 30.0 | 90.0 / 70.0 / 80.0 | 90.0 / 90.0 / 90.0 | 1 |"
    assert told.splitlines()[-1] == last


def test_each_difference_of_the_program_is_tried_alone_and_left_out():
    cells = table2.cells()
    assert cells["none"] == {} and len(cells) == 2 + 2 * len(table2.DIFFERENCES) == 10
    for name, settings in table2.DIFFERENCES.items():
        alone, without = cells[f"only {name}"], cells[f"all but {name}"]
        assert alone == settings and {**without, **settings} == cells["all"]
