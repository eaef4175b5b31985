"""The board: a fixed protocol, one row per rule, what makes a row invalid, and what it advises."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from experiments.board import measure, protocol, recommend, rows
from experiments.board.score import score
from experiments.cli import app
from fedrobust import data
from fedrobust.experiment.load import expand
from fedrobust.experiment.schema import ConfigError

TINY = protocol.Budget(
    "tiny",
    ("digits", "digits"),
    2,
    (1,),
    (
        protocol.Cell(protocol.HETEROGENEOUS, 0),
        protocol.Cell(protocol.HETEROGENEOUS, 4),
        protocol.Cell(protocol.HETEROGENEOUS, 11),
    ),
    ("nearly everything",),
)


def cell(name="mixed 4/20", byzantine=4, **changes):
    found = {
        "cell": name, "federation": name.split()[0], "says": "", "heterogeneity": "mixed",
        "clients": 20, "byzantine": byzantine, "share": byzantine / 20, "clean": 0.9,
        "stability": 0.01, "seconds": 3.0,
    }  # fmt: skip
    if byzantine:
        found |= {
            "auto": 0.8, "interval": None, "winner": "drift_search", "fixed": "min_max",
            "fixed_accuracy": 0.85, "flags": [],
        }  # fmt: skip
    return found | changes


def row(rule="krum", *, ms=1.0, **changes):
    """A whole row of the quick budget, as if it had been measured."""
    cells = []
    for one in protocol.QUICK.cells:
        n = one.federation.settings["clients"]
        at = {"clients": n, "share": round(one.byzantine / n, 4)}
        at |= {"heterogeneity": one.federation.heterogeneity, **changes.get(one.name, {})}
        cells.append(cell(one.name, one.byzantine, **at))
    return {
        "protocol": 1, "budget": "quick", "rule": rule, "settings": {}, "origin": "fedrobust",
        "fedrobust": "0", "members": 1, "seeds": [1], "tuned": {}, "cells": cells,
        "score": score(cells), "aggregation_ms": {"n": 20, "d": 100_000, "ms": ms},
        "runs": 137, "seconds": 9.0, "machine": {"cores": 2}, "left_out": [],
    }  # fmt: skip


# The protocol


def test_every_cell_of_every_budget_is_an_experiment():
    seen = 0
    for budget in protocol.BUDGETS.values():
        for one in budget.cells:
            (e,) = expand(protocol.document(one, budget, "median", seed=1))
            assert (e.byzantine, e.data in budget.data) == (one.byzantine, True)
            assert e.rounds == budget.rounds and e.seed in budget.seeds
            seen += 1
    assert seen == 22 + 9
    shares = {round(c.byzantine / c.federation.settings["clients"], 3) for c in protocol.FULL.cells}
    assert shares == {0.0, 0.1, 0.2, 0.4, 0.008}
    names = [c.name for c in protocol.QUICK.cells]
    assert len(set(names)) == len(names) and set(names) <= {c.name for c in protocol.FULL.cells}
    assert protocol.QUICK.left_out and "local" in {c.federation.name for c in protocol.QUICK.cells}


def test_validation_images_come_from_the_training_images_alone():
    whole, split = data.load("digits"), data.load("digits-validation")
    assert len(split.train_labels) + len(split.test_labels) == len(whole.train_labels)
    assert len(split.test_labels) == len(whole.train_labels) // 10
    kept = torch.cat([split.train_images, split.test_images])
    assert torch.equal(kept.flatten(1).sum(0), whole.train_images.flatten(1).sum(0))
    assert split.classes == 10 and split.name == "digits-validation"


# Measuring


FILE = '''
def board_middle(updates, *, f):
    """Average what is left of each coordinate without its f extremes on either side."""
    if len(updates) <= 2 * f:
        raise ValueError("too few")
    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)


def _hidden(updates):
    return updates[0]
'''


@pytest.mark.slow
def test_a_rule_of_ten_lines_in_a_file_gets_its_row(tmp_path, monkeypatch):
    monkeypatch.setitem(protocol.BUDGETS, "tiny", TINY)
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    empty = measure.Bench("", TINY, tmp_path / "out", workers=1)
    bench = measure.bench_of(str(file), empty)
    assert (bench.rule, bench.origin.split()[0]) == ("board_middle", "mine.py")
    small = protocol.Budget("tiny", TINY.data, 2, (1,), TINY.cells[:2], TINY.left_out)
    monkeypatch.setitem(protocol.BUDGETS, "tiny", small)
    bench = measure.bench_of(str(file), measure.Bench("", small, tmp_path / "out", workers=1))
    said = []
    found = measure.measure(bench, say=said.append)
    assert rows.wrong(found) == []
    assert found["runs"] == 1 + 17 and found["left_out"] == ["nearly everything"]
    tuned = found["tuned"]["mixed"]
    assert tuned["key"] == "server.lr" and len(tuned["tried"]) == 3
    assert tuned["tried"][f"{tuned['value']:g}"] == max(tuned["tried"].values())
    attacked = found["cells"][1]
    assert attacked["auto"] <= attacked["fixed_accuracy"] and attacked["flags"]
    assert found["score"]["worst"] == attacked["auto"] and found["score"]["refused"] == 0
    assert any("18 runs, about" in line for line in said)
    again = measure.measure(bench, say=said.append)
    assert "all 18 runs are there already" in said
    assert again["cells"] == found["cells"]
    path = rows.write(found, tmp_path / "board")
    assert rows.read(path.parent) == [json.loads(path.read_text())]


def test_a_cell_that_a_rule_refuses_is_told_and_counts_as_nothing(tmp_path):
    bench = measure.Bench("krum", TINY, tmp_path)
    planned = measure.plan(bench, {})
    assert [len(one.experiments) for one in planned] == [1, 17, 0]
    assert "krum with f=11 needs at least 25 updates, got 20" in planned[2].refused
    refused = measure._cell(bench, planned[2])
    assert refused["refused"] and score([cell(), refused])["worst_anywhere"] == 0.0
    assert score([cell(), refused])["worst"] == 0.8


def test_a_file_without_or_with_several_rules_is_refused(tmp_path):
    bench = measure.Bench("", TINY, tmp_path)
    for text, sentence in (
        ("x = 1\n", "holds none: name the rule"),
        (
            "def a(u):\n    return u[0]\n\n\ndef b(u):\n    return u[1]\n",
            "holds a, b: name the rule",
        ),
    ):
        file = tmp_path / "several.py"
        file.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            measure.bench_of(str(file), bench)
    assert measure.bench_of(f"{file}:b", bench).rule == "b"
    chosen = measure.bench_of("centered_clipping:tau=0.5", bench)
    assert (chosen.rule, chosen.settings) == ("centered_clipping", {"tau": 0.5})


# Rows


def test_a_row_is_valid_or_says_why_not():
    good = row()
    assert rows.wrong(good) == []
    for change, sentence in (
        ({"protocol": 2}, "protocol 2 is not 1"),
        ({"budget": "cheap"}, "unknown budget 'cheap'"),
        ({"seeds": [1, 2]}, r"seeds are \[1\]"),
        ({"members": 0}, "was version 0"),
        ({"cells": good["cells"][:-1]}, "missing: few 1/120"),
        ({"score": {"worst": 0.99}}, "the score is not that of the cells"),
        ({"rule": 3}, "'rule' has the wrong type"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ):
        assert any(re.search(sentence, w) for w in rows.wrong(good | change)), sentence
    for change, sentence in (
        ({"auto": 1.2}, "auto must be in 0..1"),
        ({"auto": 0.86}, "leaves more than its own member"),
        ({"clean": None}, "clean must be in 0..1"),
    ):
        broken = copy.deepcopy(good)
        broken["cells"][1] |= change
        assert any(sentence in w for w in rows.wrong(broken)), sentence
    del broken["cells"][1]["winner"]
    assert any("'winner' is missing" in w for w in rows.wrong(broken))
    assert rows.wrong([]) and rows.wrong({"rule": "x"})


def test_an_invalid_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps(row() | {"protocol": 9}))
    with pytest.raises(ConfigError) as caught:
        rows.read(tmp_path)
    assert [line.split(":")[0] for line in caught.value.errors] == ["a.json", "b.json"]


def test_the_rows_that_ship_are_valid_and_the_table_is_in_order():
    found = rows.read()
    assert len(found) >= 1
    assert len({r["rule"] for r in found}) == len(found)
    table = rows.table(found)
    worst = [float(w) for w in table["worst"]]
    assert worst == sorted(worst, reverse=True) and "mixed 4/20" in table.columns


def test_the_table_puts_the_best_worst_case_first():
    weak = row("median", **{"plain 4/20": {"auto": 0.2}})
    refusing = row("bulyan", **{"mixed 8/20": {"refused": "bulyan needs 35"}})
    table = rows.table([weak, refusing, row("krum")])
    assert list(table.index) == ["bulyan", "krum", "median"]
    assert table.at["median", "worst"] == "20.0" and table.at["bulyan", "mixed 8/20"] == "refused"


# Advice


def test_recommend_reads_the_cells_that_speak_for_a_federation():
    board = [
        row("krum", ms=3.0, **{"mixed 4/20": {"auto": 0.5}}),
        row("median", ms=1.0, **{"mixed 4/20": {"auto": 0.84}, "plain 4/20": {"auto": 0.79}}),
        row("cge", ms=9.0),
    ]  # fmt: skip
    found = recommend.recommend(board, clients=20, byzantine=4)
    assert [one.rule for one in found] == ["cge", "median", "krum"]
    assert found[1].cell == "plain 4/20"
    assert [one.holds for one in found] == [True, True, False]
    assert found[2].cell == "mixed 4/20" and found[2].kept == pytest.approx(0.5 / 0.9)
    cheap = recommend.recommend(board, clients=20, byzantine=4, most_ms=2.0)
    assert [one.rule for one in cheap] == ["median"]
    lines = recommend.spoken(found, clients=20, byzantine=4)
    assert lines[0] == "for n = 20, f = 4: cge" and "it kept 89%" in lines[1]
    assert "-o byzantine=4 -o rule=cge -s attack=none,auto" in lines[3]


def test_recommend_finds_the_cell_with_the_very_share_asked_for():
    (one,) = recommend.recommend([row()], clients=120, byzantine=1)
    assert one.cell == "few 1/120"


def test_recommend_says_that_none_holds_and_what_it_does_not_know():
    board = [row("krum", **{"mixed 8/20": {"auto": 0.3}})]
    found = recommend.recommend(board, clients=20, byzantine=8)
    assert not found[0].holds
    assert recommend.spoken(found, clients=20, byzantine=8)[0].startswith("none holds for n = 20")
    few = recommend.recommend(board, clients=8, byzantine=3)
    assert few == [], "krum with f = 3 needs 9"
    assert "no rule of the board takes" in recommend.spoken(few, clients=8, byzantine=3)[0]
    for bad, sentence in (
        ({"clients": 20, "byzantine": 9}, "no mixed federation with 45% attackers"),
        ({"clients": 20, "byzantine": 10}, "below clients / 2"),
        ({"clients": 20, "byzantine": 2, "heterogeneity": "iidd"}, "choose from iid, mixed"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            recommend.recommend(board, **bad)


def test_recommend_on_the_command_line(tmp_path):
    (tmp_path / "krum.json").write_text(json.dumps(row()))
    call = ["recommend", "--clients", "20", "--byzantine", "4", "--board", str(tmp_path)]
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0 and "for n = 20, f = 4: krum" in told.output
    as_json = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert as_json["defences"][0]["rule"] == "krum" and as_json["defences"][0]["holds"] is True
