"""The audit's parts: what is judged, how, and what is shown; no app runs here."""

import io
import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from typer.testing import CliRunner

from experiments.audit import application, card
from experiments.audit.cell import Cell, Run
from experiments.audit.classification import classify
from experiments.audit.judgement import verdict
from experiments.audit.outcomes import Finding, judge
from experiments.audit.page import page
from experiments.audit.phases import Phases
from experiments.audit.plan import Defence, Options, Outcome, check_options, with_members
from experiments.audit.quality import CLIENTS, DISTANCE, SERVER, Judge, choose, direction
from experiments.audit.report import Audit
from experiments.audit.text import plain
from experiments.cli import app as command
from fedrobust import plugins
from fedrobust.aggregation import aggregate
from fedrobust.attacks import ATTACKS, members
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import Robust
from fedrobust.flower.reply_aggregation import ReplyAggregator
from fedrobust.spec import InputError, SpecError

RUNNER = CliRunner()
EVIL = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>[bold red]\nnext\x9b31m"


def run(cell=None, *, status="finished", error="", seconds=1.0, **facts):
    held = {
        "loaded": True, "server": [], "evaluations": [], "asked": {}, "asked_first": {},
        "client_errors": [], "client_error_count": 0, "replaced": 3, "defended": True,
        "non_finite": False, "arrays_finite": True, "train_batches": 3, "types": ["train"],
        "floats": 30, "strategies": [{"name": "FedAvg", "own_start": False, "robust": False,
                                      "private": False}], "train_sizes": [10],
    }  # fmt: skip
    return Run(cell or Cell(), status, error, seconds, held | facts)


def rounds(*values, name="accuracy"):
    return [{"round": i, name: value} for i, value in enumerate(values)]


def clean(values=(0.9, 0.92, 0.91), first=0.1):
    return [run(Cell(seed=i + 1), server=rounds(first, value)) for i, value in enumerate(values)]


def judge_of(values=(0.9, 0.92, 0.91), tolerance=0.05):
    runs = clean(values)
    return Judge(choose(runs, None)[0], runs, [{}] * len(runs), tolerance)


@pytest.mark.parametrize(
    ("name", "way"),
    [("eval_acc", "max"), ("accuracy", "max"), ("test-F1", "max"), ("loss", "min"),
     ("test_logloss", "min"), ("RMSE", "min"), ("epsilon", None), ("train_time", None),
     ("random_metric", None), ("lossless", None), ("macro", None)],
)  # fmt: skip
def test_directions_are_known_by_whole_words_or_not_at_all(name, way):
    assert direction(name) == way


def test_the_number_is_the_servers_before_the_nodes_and_accuracy_before_loss():
    both = run(server=[{"round": 0, "loss": 2.0}, {"round": 1, "loss": 1.0, "accuracy": 0.5}],
               evaluations=[{"eval_acc": 0.4}])  # fmt: skip
    metric, _ = choose([both], None)
    assert (metric.source, metric.name, metric.direction) == (SERVER, "accuracy", "max")
    metric, _ = choose([run(evaluations=[{"epsilon": 1.0, "eval_loss": 0.4}])], None)
    assert (metric.source, metric.name, metric.direction) == (CLIENTS, "eval_loss", "min")
    metric, unknown = choose([run(evaluations=[{"epsilon": 1.0}])], None)
    assert metric.source == DISTANCE and unknown == ["epsilon"]
    only_before = run(server=[{"round": 0, "accuracy": 0.1}], asked={"acc": 0.5})
    assert choose([only_before], None)[0].name == "acc"


def test_a_wanted_metric_needs_a_direction():
    told = [run(evaluations=[{"epsilon": 1.0, "acc": 0.5}])]
    assert choose(told, "epsilon:min")[0].direction == "min"
    assert choose(told, "acc")[0].direction == "max"
    with pytest.raises(ConfigError, match="Say --metric epsilon:max or --metric epsilon:min"):
        choose(told, "epsilon")
    with pytest.raises(ConfigError, match=r"no metric 'epsilom'.*did you mean 'epsilon'"):
        choose(told, "epsilom:min")


def test_a_fall_must_exceed_the_tolerance_and_three_spreads():
    quiet, noisy = judge_of((0.9, 0.9, 0.9)), judge_of((0.7, 0.9, 0.8))
    assert quiet.baseline.tolerated == pytest.approx(0.05)
    assert noisy.baseline.tolerated == pytest.approx(3 * 0.1)
    attacked = Cell(attack="alie", k=2)
    fallen = run(attacked, server=rounds(0.1, 0.6))
    assert judge(fallen, quiet, {}).outcome == "degrades"
    assert judge(fallen, noisy, {}).outcome == "holds"
    assert quiet.learned() and judge_of((0.1, 0.1, 0.1)).learned() is False


def test_a_loss_falls_upwards_and_its_tolerance_is_a_share():
    runs = [run(server=rounds(200.0, value, name="mse")) for value in (100.0, 100.0)]
    made = Judge(choose(runs, None)[0], runs, [{}, {}], 0.05)
    assert made.baseline.tolerated == pytest.approx(5) and made.fall(110.0) == pytest.approx(10)


def test_without_a_metric_the_distance_is_in_spreads():
    arrays = [{"0": np.array([x, 1.0])} for x in (1.0, -1.0)]
    runs = [run(Cell(seed=1)), run(Cell(seed=2))]
    made = Judge(choose(runs, None)[0], runs, arrays, 0.05)
    assert made.value(runs[0], {"0": np.array([7.0, 1.0])}) == pytest.approx(7)
    assert made.value(runs[0], {"0": np.zeros(9)}) is None
    moved = judge(run(Cell(attack="alie", k=1)), made, {"0": np.array([7.0, 1.0])})
    assert moved.outcome == "degrades"


CASES = {
    "ends the run": {"status": "raised", "error": "ValueError: shapes"},
    "hangs": {"status": "hung", "error": "no end within 60 s"},
    "NaN": {"server": rounds(0.1, 0.9), "non_finite": True},
    "no result": {"replaced": 0, "server": rounds(0.1, 0.9)},
    "holds": {"server": rounds(0.1, 0.9)},
}


@pytest.mark.parametrize("outcome", sorted(CASES))
def test_what_a_run_means(outcome):
    found = judge(run(Cell(attack="alie", k=1), **CASES[outcome]), judge_of(), {})
    assert found.outcome == outcome
    assert found.broke == (outcome in ("ends the run", "hangs", "NaN"))


def test_cells_that_show_nothing_are_no_results():
    attacked = Cell(attack="alie", k=1)
    ended = run(attacked, status="raised", replaced=0, untouched="no array")
    assert judge(ended, judge_of(), {}).outcome == "no result", "it raised by itself"
    failed = {"batch": 2, "node": 3, "reason": "KeyError", "finite": True}
    good = {"server": rounds(0.1, 0.9)}
    found = judge(run(attacked, client_errors=[failed], **good), judge_of(), {})
    assert found.outcome == "no result" and "honest node 3 failed: KeyError" in found.reason
    after_nan = run(attacked, client_errors=[failed | {"finite": False}], non_finite=True, **good)
    assert judge(after_nan, judge_of(), {}).outcome == "NaN", "they fail because the model is NaN"
    defended = Cell(attack="alie", k=1, defence="median")
    found = judge(run(defended, defended=False, **good), judge_of(), {})
    assert (found.outcome, found.reason) == ("no result", "the defence was not reached")
    assert judge(run(attacked), judge_of(), {}).outcome == "no result", "without a number"
    nothing = judge(run(attacked, server=rounds(0.1, math.nan)), judge_of(), {})
    assert nothing.outcome == "NaN"


def found(outcome, attack="alie"):
    return Finding(run(Cell(attack=attack, k=1)), outcome, reason="why")


def test_word_score_threshold_and_exit_code_are_one_computation():
    three = [found("holds"), found("holds"), found("degrades"), found("no result")]
    made = verdict(three, 1.0)
    assert (made.word, made.exit_code, made.sentence) == ("weak", 1, "withstood 2 of 3 attacks")
    assert made.score == pytest.approx(2 / 3)
    assert verdict(three, 0.6).exit_code == 0 and verdict(three, 0.6).word == "holds"
    nothing = verdict([found("no result")], 0.0)
    assert (nothing.word, nothing.exit_code, nothing.score) == ("not audited", 3, None)
    assert "no attack had a result: why" in nothing.sentence
    assert verdict([], 0.0).exit_code == 3


STOPS = {
    "cannot be imported: ModuleNotFoundError": {"status": "raised", "loaded": False,
                                                "error": "ModuleNotFoundError: x"},
    "fails without an attack: KeyError": {"status": "raised", "error": "KeyError: x"},
    "no end within 600 s": {"status": "hung", "error": "no end within 600 s"},
    "2 client errors without an attack; node 4: disk": {
        "client_error_count": 2,
        "client_errors": [{"batch": 0, "node": 4, "reason": "disk", "finite": True}]},
    "secure aggregation": {"secure": True},
    r"no training message was sent \(types: query\)": {"train_batches": 0, "types": ["query"]},
    r"not of one shape \(layer 'e' is .*vertical federated learning": {
        "unlike": "layer 'e' is float (4, 2), expected float (4, 3)"},
    r"no training reply \(train.a, train.b\) holds an array of a shape that was sent": {
        "train_types": ["train.a", "train.b"], "continues": False},
}  # fmt: skip


@pytest.mark.parametrize("sentence", sorted(STOPS))
def test_why_an_app_cannot_be_audited(sentence):
    kind = classify(run(**STOPS[sentence]))
    assert re.search(sentence, kind.stop)


def test_the_kinds_of_apps():
    assert classify(run()).seam == "wrapper" and classify(run()).stop == ""
    loop = classify(run(strategies=[]))
    assert loop.seam == "grid" and loop.shape == "a loop of its own over the grid"
    assert classify(run(legacy=True, strategies=[])).shape == "the older API (flwr.server)"
    blob = classify(run(floats=0))
    assert not blob.vector and "no floating array" in blob.not_tried[0][1]
    loose = classify(run(alone=3))
    assert not loose.together and "as it comes" in dict(loose.not_tried)["defences"]
    assert loose.notes == [
        "training messages go out one by one: each attacker knows nothing but its own reply"
    ]
    assert classify(run(alone=1, train_sizes=[1, 10])).together
    robust = {"name": "Krum", "own_start": True, "robust": True, "private": False}
    kind = classify(run(strategies=[robust, robust]))
    assert kind.shape == "strategy Krum with a start of its own, started 2 times"
    assert kind.notes[0].startswith("Krum is a robust rule itself")


def test_a_label_is_the_cell():
    cell = Cell(attack="sign_flip:scale=4.0", k=2, defence="nnm:f=2+krum:f=2", seam="wrapper",
                seed=3)  # fmt: skip
    assert Cell.of(cell.label) == cell
    with pytest.raises(ValueError, match="a cell is attack/k/defence/seam/seed/grid"):
        Cell.of("alie")


def phases(options, nodes=10):
    made = application.Application(application.Path("."), "x", "a:b", "a:c", nodes=nodes)
    return Phases(made, options, cells=None)


def test_defences_get_the_audits_f_and_too_few_nodes_are_told():
    made = phases(Options())
    assert made.f == 2
    assert made._defences() == ["trimmed_mean:f=2", "nnm:f=2+trimmed_mean:f=2", "krum:f=2",
                                "median"]  # fmt: skip
    few = phases(Options(defences=["krum", {"name": "trimmed_mean", "f": 1}], f=1), nodes=4)
    assert few._defences() == ["trimmed_mean:f=1"]
    assert few.out.not_tried == [("defence krum", "4 nodes are too few for it with f=1")]


def test_auto_is_its_published_members_each_once():
    made = with_members(["alie", "auto", {"name": "mimic"}])
    assert made[0] == "alie" and len(made) == len(set(made)) == len(members.FIXED)
    assert {"min_sum", "mimic", "alie:z=1.5", "sign_flip:scale=4.0", "opt_ipm"} <= set(made)
    assert phases(Options(attacks=made))._asked(ATTACKS, ()) == made
    check_options(Options(attacks=made), 10)
    assert with_members(None) is None
    with pytest.raises(SpecError, match="has no parameters"):
        with_members(["auto:z=1"])


def test_what_is_not_tried_is_listed():
    quick = phases(Options(quick=True))
    from fedrobust.flower.broken_replies import BROKEN

    tried = quick._asked(BROKEN, ("exception",))
    assert tried == ["exception"]
    assert {what for what, _ in quick.out.not_tried} == set(BROKEN) - {"exception"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"f": 10}, "1 <= f < 10"), ({"threshold": 2.0}, "share in 0..1"),
     ({"grid": "ray"}, "choose from in_process, flower"), ({"seeds": 0}, "at least 1"),
     ({"attacks": ["sign_flipp:scale=1"]}, "did you mean 'sign_flip'")],
)  # fmt: skip
def test_options_are_checked_before_anything_runs(options, sentence):
    with pytest.raises((ValueError, SpecError), match=sentence):
        check_options(Options(**options), 10)


def folder(tmp_path, config="rounds = 3"):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text(f"""
[project]
name = "mine"
version = "1.0"
description = ""
license = "Apache-2.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "mine:server"
clientapp = "mine:client"
[tool.flwr.app.config]
{config}
nested.lr = 0.1
[tool.flwr.federations]
default = "local"
[tool.flwr.federations.local]
options.num-supernodes = 7
""")
    return tmp_path / "app"


def test_an_app_is_read_without_importing_it(tmp_path):
    path = folder(tmp_path)
    made = application.read(path, overrides={"nested.lr": 0.5})
    assert (made.name, made.nodes, made.run_config) == ("mine", 7, {"rounds": 3, "nested.lr": 0.5})
    assert application.read(path, nodes=4).nodes == 4
    for wrong, sentence in (
        ({"folder": tmp_path}, "is no folder of a Flower app"),
        ({"folder": path, "overrides": {"round": 1}}, "round"),
        ({"folder": path, "nodes": 2}, "at least 3 nodes, got 2"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            application.read(**wrong)


def test_the_hash_sees_every_file_and_the_copy_is_apart(tmp_path):
    path = folder(tmp_path)
    (path / "data").mkdir()
    (path / "data" / "x.bin").write_bytes(b"abc")
    (path / "__pycache__").mkdir()
    first = application.tree_hash(path)
    (path / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert application.tree_hash(path) == first
    copy = application.copy(path, tmp_path / "copy")
    assert application.tree_hash(copy) == first and not (copy / "__pycache__").exists()
    (copy / "data" / "x.bin").write_bytes(b"abd")
    assert application.tree_hash(path) == first
    (path / "data" / "x.bin").write_bytes(b"abd")
    changed = application.tree_hash(path)
    (path / "empty").mkdir()
    assert len({first, changed, application.tree_hash(path)}) == 3


def audit_of(tmp_path, outcome="degrades", reason=EVIL):
    made = application.read(folder(tmp_path))
    out = Outcome(kind=classify(run()), judge=judge_of())
    attacked = Cell(attack="alie", k=2)
    defended = Cell(attack="alie", k=2, defence="median", seam="wrapper")
    out.findings = [
        ("clean", Finding(run(), "holds", 0.9, 0.0)),
        ("attack", Finding(run(attacked), outcome, math.nan, 0.7, reason)),
        ("defence", Finding(run(defended), "holds", 0.9, 0.0)),
    ]
    out.defences = [Defence("median", "wrapper", 1, 1, 0.01, 1.2)]
    out.starts, out.notes, out.not_tried = {"alie": 1}, [EVIL], [("seesaw", EVIL)]
    return Audit.of(made, Options(), out, hashes=("a" * 64, "a" * 64), seconds=3.0,
                    versions={"flwr": "1"})  # fmt: skip


def test_nothing_of_the_app_reaches_terminal_page_or_json_as_it_is(tmp_path):
    made = audit_of(tmp_path)
    assert plain(EVIL) == "<script>alert(1)</script>[bold red] next31m"
    text = page(made.document())
    assert "<script" not in text and "&lt;script&gt;" in text and "\x1b" not in text
    assert "http" not in text.replace("http-equiv", ""), "self-contained"
    console = Console(record=True, force_terminal=True, width=100, file=io.StringIO())
    card.show(made, console)
    shown = console.export_text(styles=False)
    assert "[bold red]" in shown, "markup of the app is text"
    assert "\x1b]" not in console.export_text(styles=True)
    assert len(shown.splitlines()) < 40, "one screen"
    drawn = card.picture(made)
    assert "<script" not in drawn and "\x1b" not in drawn and "font-face" not in drawn
    assert re.findall(r"https?://[^\"' )]+", drawn) == ["http://www.w3.org/2000/svg"]
    ElementTree.fromstring(drawn)
    document = json.loads(made.to_json(tmp_path / "audit.json"))
    assert "\\u001b" not in (tmp_path / "audit.json").read_text()
    assert document["schema_version"] == 1 and document["cells"][1]["value"] == "nan"
    assert document["verdict"]["exit_code"] == made.exit_code == 1
    assert set(document["app"]) >= {"sha256_before", "sha256_after"}


def test_the_remedy_is_the_lines_that_were_measured(tmp_path):
    made = audit_of(tmp_path)
    assert made.remedy.endswith('strategy = Robust(strategy, rule="median")')
    row = made.cells.set_index("attack").loc["alie"].iloc[0]
    assert row["repeat"].endswith("--cell alie/2/none/grid/1/in_process")
    out = made.outcome
    out.defences = [Defence("median", "wrapper", 1, 1, why="it refuses honest replies")]
    assert made.remedy == ""


MIDDLE = """
import fedrobust

def middle(updates, *, f):
    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)

@fedrobust.plugin("rule", "marked")
def other(updates, *, f):
    return middle(updates, f=f)
"""


@pytest.mark.parametrize("name", ["middle", "marked"])
def test_the_lines_of_a_rule_of_ones_own_run_as_they_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.py").write_text(MIDDLE)
    made = audit_of(tmp_path)
    plugins.use("rules.py")
    check_options(Options(defences=[name]), 10)
    out, options = made.outcome, Options(use=["rules.py"], defences=[name])
    (text,) = phases(options)._defences()
    assert text == f"{name}:f=2"
    out.defences = [Defence(text, "wrapper", 1, 1, 0.01, 1.2)]
    told = replace(made, options=options).remedy
    assert "plugins.use('rules.py')" in told
    plugins.ROOM.take("rule", name)  # a server starts without it
    plugins.ROOM.files.clear()
    place = {"strategy": FedAvg()}
    exec(told, place)
    rows = torch.arange(20.0).reshape(10, 2) ** 2
    assert isinstance(place["strategy"], Robust)
    found = ReplyAggregator(text, seed=1).rehearse(rows)
    torch.testing.assert_close(found, aggregate(rows, {"name": "trimmed_mean", "f": 2}))


def test_a_rule_that_nobody_has_is_told_before_anything_runs():
    with pytest.raises(SpecError, match=r"unknown rule 'midle'"):
        check_options(Options(defences=["midle:f=2"]), 10)
    with pytest.raises(ValueError, match="put a rule of your own into a file"):
        check_options(Options(defences=[len]), 10)


def test_the_command_that_repeats_a_cell_says_all_that_decides_it(tmp_path):
    made = audit_of(tmp_path)
    path = str(made.application.folder)
    assert made.command("--cell", "x") == f"fedrobust audit {path} --cell x"
    app = application.read(path, overrides={"rounds": 2}, nodes=6)
    options = Options(metric="eps:min", seeds=2, quick=True, use=["my rules.py"], tolerance=0.1)
    told = replace(made, application=app, options=options).command()
    assert told == (
        f"fedrobust audit {path} -o rounds=2 --nodes 6 --metric eps:min --seeds 2 --tolerance 0.1 "
        "--use 'my rules.py' --quick"
    )


def test_a_changed_folder_is_not_audited(tmp_path):
    made = audit_of(tmp_path)
    changed = Audit.of(made.application, Options(), made.outcome, hashes=("a", "b"), seconds=1.0,
                       versions={})  # fmt: skip
    assert changed.exit_code == 3 and "folder changed" in changed.summary.sentence


def test_wrong_calls_of_the_command(tmp_path):
    path = folder(tmp_path)
    before = application.tree_hash(path)
    for given, sentence in (
        ([str(tmp_path)], "is no folder of a Flower app"),
        ([str(path), "--attack", "alia"], "did you mean 'alie'"),
        ([str(path), "--cell", "alie"], "a cell is attack/k"),
        ([str(path), "-o", "rounds"], "an override is key=value"),
        ([str(path), "--output", str(path / "out")], "writes nothing into the app's folder"),
        ([str(path), "--grid", "ray"], "unknown grid 'ray'"),
    ):
        result = RUNNER.invoke(command, ["audit", *given])
        assert isinstance(result.exception, InputError), given
        assert sentence in str(result.exception)
    assert application.tree_hash(path) == before
