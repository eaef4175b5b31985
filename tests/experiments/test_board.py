"""The board: a fixed protocol, one row per rule, what makes a row invalid, and what it advises."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from experiments.board import __main__ as whole
from experiments.board import bench as benches
from experiments.board import cells as told_cells
from experiments.board import flower_rules, measure, page, picture, protocol, recommend, rows
from experiments.board.score import score
from experiments.cli import app
from fedrobust import data
from fedrobust.aggregation import aggregate
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
        "clean_detail": detail(0.7), "bytes_up": 9, "bytes_down": 9, "seconds": 3.0,
        "training": "gradients", "sampled": False,
    }  # fmt: skip
    if "refused" in changes:
        gone = ("clean", "clean_detail", "bytes_up", "bytes_down", "seconds")
        return {k: v for k, v in found.items() if k not in gone} | changes
    if byzantine:
        auto = changes.get("auto", 0.8)
        found |= {
            "auto": auto, "auto_detail": detail(0.5), "interval": None, "winner": "drift_search",
            "fixed": "min_max", "fixed_accuracy": 0.85, "flags": [],
            "attacks": {"drift_search": auto, "min_max": 0.85},
        }  # fmt: skip
    return found | changes


def detail(worst):
    return {"stability": 0.01, "by_class": [0.9, worst], "worst_class": worst, "worst_client": 0.6}


def row(rule="krum", *, ms=1.0, **changes):
    """A whole row of the quick budget, as if it had been measured."""
    cells = []
    for one in protocol.QUICK.cells:
        n = one.federation.settings["clients"]
        at = {"clients": n, "share": round(one.byzantine / n, 4)}
        at |= {"heterogeneity": one.federation.heterogeneity, "training": one.federation.training}
        at |= {"federation": one.federation.name, **changes.get(one.name, {})}
        cells.append(cell(one.name, one.byzantine, **at))
    return {
        "protocol": 2, "budget": "quick", "rule": rule, "settings": {}, "origin": "fedrobust",
        "fedrobust": "0", "members": 1, "external": [], "seeds": [1], "tuned": {}, "cells": cells,
        "score": score(cells), "aggregation_ms": {"n": 20, "d": 100_000, "ms": ms},
        "runs": 137, "seconds": 9.0, "processor_seconds": 8.0, "machine": {},
        "left_out": [],
    }  # fmt: skip


# The protocol


def test_every_cell_of_every_budget_is_an_experiment():
    seen = 0
    for budget in protocol.BUDGETS.values():
        for one in budget.cells:
            (e,) = expand(protocol.document(one, budget, "median", seed=1))
            assert (e.byzantine, e.clients) == (one.byzantine, one.federation.settings["clients"])
            assert e.data in (*budget.data, "breast_cancer")
            assert e.rounds == budget.rounds and e.seed in budget.seeds
            seen += 1
    assert seen == 24 + 10
    shares = {round(c.byzantine / c.federation.settings["clients"], 3) for c in protocol.FULL.cells}
    assert shares == {0.0, 0.1, 0.2, 0.4, 0.008}
    names = [c.name for c in protocol.QUICK.cells]
    assert len(set(names)) == len(names) and set(names) <= {c.name for c in protocol.FULL.cells}
    kinds = {(c.federation.training, c.federation.sampled) for c in protocol.QUICK.cells}
    assert kinds == {("gradients", False), ("gradients", True), ("local steps", False)}
    assert not any(c.federation.gpu for c in protocol.QUICK.cells)
    assert protocol.QUICK.left_out and "local" in {c.federation.name for c in protocol.QUICK.cells}


def test_an_unknown_budget_is_named():
    assert protocol.budget_of("quick") is protocol.QUICK
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        protocol.budget_of("quik")


def test_a_plan_says_how_long_it_takes_and_runs_no_cell(tmp_path):
    small = protocol.Budget("tiny", TINY.data, 2, (1,), TINY.cells[:2])
    bench = benches.Bench("median", small, tmp_path, workers=1)
    told = measure.forecast(bench, measure.plan(bench, {}))
    assert re.match(r"18 runs, about .* on 1 process\(es\).* \(0 of 18 are there already\)", told)
    assert list(tmp_path.iterdir()) == []


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
    small = protocol.Budget("tiny", TINY.data, 2, (1,), TINY.cells[:2], TINY.left_out)
    monkeypatch.setitem(protocol.BUDGETS, "tiny", small)
    empty = benches.Bench("", small, tmp_path / "out", workers=1)
    bench = benches.bench_of(str(file), empty)
    assert (bench.rule, bench.origin.split()[0]) == ("board_middle", "mine.py")
    said = []
    found = measure.measure(bench, say=said.append)
    assert rows.wrong(found) == []
    assert found["runs"] == 1 + 17 and found["left_out"] == ["nearly everything"]
    tuned = found["tuned"]["mixed"]
    assert tuned["key"] == "server.lr" and len(tuned["tried"]) == 3
    assert tuned["tried"][f"{tuned['value']:g}"] == max(tuned["tried"].values())
    attacked = found["cells"][1]
    assert len(attacked["attacks"]) == 16 and len(attacked["auto_detail"]["by_class"]) == 10
    worst = attacked["clean_detail"]
    assert worst["worst_class"] == min(worst["by_class"]) <= worst["worst_client"] <= 1
    assert attacked["bytes_up"] == attacked["bytes_down"] == 20 * 4 * 874
    assert found["processor_seconds"] > 0
    assert attacked["auto"] <= attacked["fixed_accuracy"] and attacked["flags"]
    assert found["score"]["worst"] == attacked["auto"] and found["score"]["refused"] == 0
    assert any("18 runs, about" in line for line in said)
    again = measure.measure(bench, say=said.append)
    assert "all 18 runs are there already" in said
    assert again["cells"] == found["cells"] and again["processor_seconds"] is None
    path = rows.write(found, tmp_path / "board")
    assert rows.read(path.parent) == [json.loads(path.read_text())]


def test_a_cell_that_a_rule_refuses_is_told_and_counts_as_nothing(tmp_path):
    bench = benches.Bench("krum", TINY, tmp_path)
    planned = measure.plan(bench, {})
    assert [len(one.experiments) for one in planned] == [1, 17, 0]
    assert "krum with f=11 needs at least 25 updates, got 20" in planned[2].refused
    refused = told_cells.told(tmp_path, planned[2])
    assert refused["refused"] and score([cell(), refused])["worst_anywhere"] == 0.0
    assert score([cell(), refused])["worst"] == 0.8


def test_a_file_without_or_with_several_rules_is_refused(tmp_path):
    bench = benches.Bench("", TINY, tmp_path)
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
            benches.bench_of(str(file), bench)
    assert benches.bench_of(f"{file}:b", bench).rule == "b"
    chosen = benches.bench_of("centered_clipping:tau=0.5", bench)
    assert (chosen.rule, chosen.settings) == ("centered_clipping", {"tau": 0.5})


# Rows


def test_a_row_is_valid_or_says_why_not():
    good = row()
    assert rows.wrong(good) == []
    for change, sentence in (
        ({"protocol": 1}, "protocol 1 is not 2"),
        ({"budget": "cheap"}, "unknown budget 'cheap'"),
        ({"seeds": [1, 2]}, r"seeds are \[1\]"),
        ({"members": 0}, "was version 0"),
        ({"cells": good["cells"][:-1]}, "missing: table 4/20"),
        ({"score": {"worst": 0.99}}, "the score is not that of the cells"),
        ({"rule": 3}, "'rule' has the wrong type"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ):
        assert any(re.search(sentence, w) for w in rows.wrong(good | change)), sentence
    for change, sentence in (
        ({"auto": 1.2}, "auto must be in 0..1"),
        ({"auto": 0.86}, "auto is not the least that its attacks leave"),
        ({"attacks": {"min_max": 0.8}}, "the winner is not the attack that leaves least"),
        ({"byzantine": 5}, "clients and byzantine are not those of the protocol"),
        ({"not_measured": "no time"}, "every machine can measure it"),
        ({"attacks": [0.8]}, "attacks must be an object, got list"),
        ({"auto_detail": {}}, "auto_detail: 'worst_class' is missing"),
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
    assert len({(r["rule"], r["budget"]) for r in found}) == len(found)
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


def test_recommend_looks_at_one_kind_of_training_where_asked():
    board = [row("krum", **{"mixed 4/20": {"auto": 0.3}})]
    (gradients,) = recommend.recommend(board, clients=20, byzantine=4, training="gradients")
    (local,) = recommend.recommend(board, clients=20, byzantine=4, training="local steps")
    assert (gradients.cell, local.cell) == ("mixed 4/20", "local 4/20")
    assert local.holds and not gradients.holds
    asked = {"clients": 20, "byzantine": 4}
    assert "it would be krum, which keeps 89% (local 4/20)" in recommend.instead(board, **asked)
    assert recommend.instead(board, clients=20, byzantine=8) == "", "no cell with local steps"
    with pytest.raises(ConfigError, match="choose from gradients, local steps"):
        recommend.recommend(board, clients=20, byzantine=4, training="local")
    foreign = row("mine") | {"origin": "mine.py 0"}
    assert recommend.recommend([foreign], clients=20, byzantine=4) == []


# Attacks from elsewhere


STRONGER = '''
def zeros(honest, *, n, f):
    """Send what turns the mean around, a hundred times."""
    return (-100.0 * honest.mean(dim=0)).expand(f, -1)
'''


@pytest.mark.slow
def test_an_attack_from_elsewhere_replaces_a_number(tmp_path, monkeypatch):
    cells = (protocol.Cell(protocol.HETEROGENEOUS, 4),)
    small = protocol.Budget("tiny", TINY.data, 1, (1,), cells)
    monkeypatch.setitem(protocol.BUDGETS, "tiny", small)
    file = tmp_path / "stronger.py"
    file.write_text(STRONGER)
    bench = benches.Bench("median", small, tmp_path / "out", workers=1)
    bench = benches.attacked_by(f"{file}:zeros", bench)
    found = measure.measure(bench)
    assert rows.wrong(found) == []
    (attacked,) = found["cells"]
    assert len(attacked["attacks"]) == 17 and attacked["attacks"]["zeros"] >= attacked["auto"]
    assert found["external"] == [bench.external] and "stronger.py" in bench.external
    with pytest.raises(ConfigError, match=r"--against needs FILE\.py"):
        benches.attacked_by("alie", bench)


# Flower's own


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("median", "median"), ("trimmed_avg", "trimmed_mean"), ("krum", "krum")],
)
def test_flowers_strategies_give_what_our_rules_give(theirs, ours):
    source = torch.Generator().manual_seed(5)
    updates, model = torch.randn(15, 40, generator=source), torch.randn(40, generator=source)
    given = {} if ours == "median" else {"f": 3}
    found = getattr(flower_rules, f"flower_{theirs}")(updates, model=model, **given)
    # Flower computes on weights, of which the update is a difference: to rounding.
    torch.testing.assert_close(found, aggregate(updates, {"name": ours, **given}))


def test_flowers_other_strategies_average_what_their_scores_keep():
    source = torch.Generator().manual_seed(5)
    updates, model = torch.randn(15, 40, generator=source), torch.zeros(40)
    updates[:3] += 50
    kept = flower_rules.flower_multi_krum(updates, f=3, model=model)
    torch.testing.assert_close(kept, updates[3:].mean(dim=0))
    assert flower_rules.flower_bulyan(updates, f=3, model=model).abs().max() < 3
    with pytest.raises(ValueError, match="Bulyan does not aggregate 14 updates"):
        flower_rules.flower_bulyan(updates[:14], f=3, model=model)


# The page and the picture


def test_the_page_has_every_rule_and_what_the_filters_ask_for():
    refusing = row("bulyan", **{"mixed 8/20": {"refused": "bulyan needs <35>"}})
    shown = str(page.page([row("krum"), refusing]))
    assert "needs &lt;35&gt;" in shown and "needs <35>" not in shown
    assert shown.count("<tr>") == 3 and "own paper: not available" in shown
    heads = re.findall(r"<th data-[^>]*>", shown)
    assert len(heads) == 9 and sum('data-attackers="few"' in head for head in heads) == 1
    asked = set(re.findall(r'data-of="(\w+)" value="([^"]+)"', shown))
    for key in page.FILTERS:
        told = set(re.findall(rf'<th[^>]* data-{key}="([^"]+)"', shown))
        assert told and {(key, value) for value in told} <= asked
    assert "\n\n" not in shown[shown.index("<script>") :]


def test_the_verdict_names_who_keeps_most_and_where_none_holds():
    weak = {"mixed 4/20": {"auto": 0.3}, "few 1/120": {"refused": "too few"}}
    board = [row("krum", **weak), row("median", **(weak | {"mixed 4/20": {"auto": 0.4}}))]
    told = page.verdict(board)
    assert "some defence holds in 7 of 9 cells" in told
    (mixed,) = [line for line in told.splitlines() if line.startswith("| mixed 4/20")]
    assert "| median | 40.0 (drift_search) | 85.0 (min_max) | **none holds** |" in mixed
    assert "| few 1/120 | - | - | - | - | every rule refuses it |" in told


def test_the_command_knows_what_belongs_on_the_board():
    for budget in protocol.BUDGETS:
        wanted = [whole.name_of(rule) for rule in whole.defences(budget)]
        assert len(set(wanted)) == len(wanted) >= 12
    shipped = {r["rule"] for r in rows.read()}
    assert shipped <= {whole.name_of(rule) for rule in whole.defences("quick")}
    assert whole.name_of("centered_clipping:tau=1.0") == "centered_clipping"
    assert whole.name_of(f"{flower_rules.__file__}:flower_krum") == "flower_krum"


def test_the_page_says_what_a_gpu_would_have_to_measure():
    last = protocol.FULL.cells[-1]
    small = protocol.Budget("tiny", TINY.data, 1, (1,), (last,))
    (gap,) = measure.plan(benches.Bench("median", small, rows.HERE), {})
    found = told_cells.told(rows.HERE, gap)
    assert gap.experiments == () and "needs a GPU" in found["not_measured"]
    assert score([cell(), found]) == score([cell()])
    assert rows.wrong(row()) == [] and rows._wrong_cell(found, last) == []


def test_the_picture_puts_each_rule_in_a_panel_and_crosses_where_it_refuses():
    refusing = row("bulyan", **{"mixed 8/20": {"refused": "bulyan needs 35"}})
    drawn = str(picture.picture([row("krum"), refusing]))
    assert drawn.count("<g transform") == 2 and drawn.count("×") == 1 + 1
    points = picture.series(row("krum"), "mixed", "auto")
    assert points == [(0.0, 0.9), (0.1, 0.8), (0.2, 0.8), (0.4, 0.8)]
    assert len(picture.series(refusing, "mixed", "auto")) == 3


def test_the_picture_of_the_readme_is_that_of_the_rows_that_ship():
    assert picture.FILE.read_text(encoding="utf-8") == str(picture.picture(rows.read()))
