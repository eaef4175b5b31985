"""The audit on small apps of the shapes that real ones have, each cell in a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedrobust
from experiments.audit.application import read, tree_hash
from experiments.audit.cell import Cell
from experiments.audit.classification import classify
from experiments.audit.phases import Phases
from experiments.audit.plan import Options
from experiments.audit.processes import Cells
from experiments.audit.quality import choose, values
from experiments.audit.table import STRATEGIES
from experiments.cli import app as command

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "apps"
FLIP = {"attack": "sign_flip:scale=4.0", "k": 2}
RULE = "trimmed_mean:f=2"
RUNNER = CliRunner()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells():
    """One host of processes for all apps."""
    with Cells(read(APPS / "fedavg"), limit=240.0) as made:
        made.warm(("sklearn", "sklearn.datasets", "torch._dynamo"), [RULE])
        yield made


def ran(cells, app, *wanted, **overrides):
    """Run cells of an app; return them with the app's number, clean first."""
    cells.switch(read(APPS / app, overrides={k.replace("_", "-"): v for k, v in overrides.items()}))
    runs = list(cells.run([Cell(), *wanted]).values())
    metric, _ = choose(runs[:1], None)
    return runs, [values(run, metric.source).get(metric.name) for run in runs]


def quality(cells, app, seam, **overrides):
    """Return clean, attacked, defended."""
    runs, told = ran(cells, app, Cell(**FLIP), Cell(**FLIP, defence=RULE, seam=seam), **overrides)
    assert all(run.status == "finished" for run in runs), [run.error for run in runs]
    assert runs[1].facts["replaced"] == runs[2].facts["replaced"] >= 2
    assert all(run.facts["client_error_count"] == 0 for run in runs)
    assert runs[2].facts["defended"] and not runs[2].facts["refused_honest"]
    return told


exhaustive = pytest.mark.exhaustive
BOTH = [("client_evaluation", {}), ("batchnorm", {}),
        *(pytest.param(app, {}, marks=exhaustive)
          for app in ("no_evaluation", "other_keys", "scaffold", "float64")),
        *(pytest.param("custom_strategy", {"variant": v}, marks=exhaustive)
          for v in ("aggregate", "start", "minimum", "inside")),
        ]  # fmt: skip


@pytest.mark.parametrize("seam", ["wrapper", "grid"])
@pytest.mark.parametrize(("app", "overrides"), BOTH, ids=str)
def test_apps_with_a_strategy_are_hurt_and_saved_at_both_seams(cells, app, overrides, seam):
    clean, attacked, defended = quality(cells, app, seam, **overrides)
    assert clean > 0.85 and attacked < 0.35
    assert defended > clean - 0.05


ROBUST = ("Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg")


@pytest.mark.parametrize(
    "name",
    [name if name == "Bulyan" else pytest.param(name, marks=exhaustive) for name in STRATEGIES],
)
def test_every_stock_strategy_trains_behind_the_rule(cells, name):
    clean, attacked, defended = quality(cells, "strategies", "wrapper", strategy=name)
    assert clean > 0.7 and defended > clean - 0.06
    if name not in (*ROBUST, "DP"):
        assert attacked < 0.35


@pytest.mark.parametrize(
    ("app", "overrides", "shape"),
    [("own_loop", {}, "a loop of its own over the grid"),
     pytest.param("own_loop", {"pull": True}, "a loop of its own over the grid", marks=exhaustive),
     ("old_api", {}, "the older API (flwr.server)"),
     pytest.param("old_workflow", {}, "the older API (flwr.server)", marks=exhaustive)],
    ids=str,
)  # fmt: skip
def test_apps_without_a_strategy_of_the_new_api_are_saved_at_the_grid(cells, app, overrides, shape):
    clean, attacked, defended = quality(cells, app, "grid", **overrides)
    assert clean > 0.85 and attacked < 0.35 and defended > clean - 0.05
    kind = classify(cells.run([Cell()])[Cell()])
    assert (kind.shape, kind.seam, kind.stop) == (shape, "grid", "")


# BatchNorm under FedAvg: the model used to be the first round's for ever.
def test_a_model_with_batchnorm_goes_on_learning(cells):
    runs, _ = ran(cells, "batchnorm", Cell(defence=RULE, seam="wrapper"))
    told = [row["accuracy"] for row in runs[1].facts["server"]]
    assert runs[1].facts["refused"] == 0 and len(set(told[1:])) > 1 and told[-1] > 0.9


def test_blobs_pass_and_only_broken_replies_can_be_tried(cells):
    runs, told = ran(cells, "trees", Cell(attack="garbage", k=1), Cell(**FLIP))
    assert told[0] > 0.7 and not classify(runs[0]).vector
    assert runs[1].status == "raised" and runs[1].facts["replaced"] == 1
    assert runs[2].facts["replaced"] == 0 and "no floating array" in runs[2].facts["untouched"]


ALONE = ("alie", "sign_flip:scale=4.0", "wrong_shape", "silence")


@pytest.mark.parametrize("together", [False, pytest.param(True, marks=exhaustive)])
def test_an_asynchronous_app_is_attacked_and_told_why_no_rule_fits(cells, together):
    cells.switch(read(APPS / "asynchronous", overrides={"together": together}))
    options = Options(attacks=ALONE, defences=[RULE], quick=True)
    out = Phases(cells.application, options, cells).conduct()
    cells.limit = 240.0
    assert out.kind.shape == "strategy FedAsync with a start of its own" and not out.stop
    assert not out.of("defence") and "compares the replies" in dict(out.not_tried)["defences"]
    assert any("nothing but its own reply" in note for note in out.notes)
    found = {f.run.cell.attack: f for f in out.of("broken reply", "attack")}
    assert found["sign_flip:scale=4.0"].outcome == "degrades"
    assert found["wrong_shape"].outcome == "ends the run" and found["silence"].outcome == "holds"
    if together:  # the first ten messages are one batch; later alie has nothing to hide among
        assert found["alie"].outcome == "holds" and found["alie"].run.facts["replaced"] == 2
    else:
        assert found["alie"].outcome == "no result" and "a minority" in found["alie"].reason


def test_a_rule_of_ones_own_defends_from_its_file(tmp_path):
    (tmp_path / "rules.py").write_text(
        "def middle(updates, *, f):\n"
        "    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)\n"
        "def shout(honest, *, n, f, factor=-10.0):\n"
        "    return (factor * honest.mean(dim=0)).expand(f, -1)\n"
    )
    out = tmp_path / "out"
    result = RUNNER.invoke(
        command, ["audit", str(APPS / "fedavg"), "--use", str(tmp_path / "rules.py"), "--defence",
                  "middle", "--defence", "trimmed_mean", "--attack", "shout", "--seeds", "2",
                  "--quick", "--output", str(out)],
    )  # fmt: skip
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
    document = json.loads((out / "audit.json").read_text())
    own = document["defences"][0]
    assert (own["name"], own["saved"], own["tried"], own["why"]) == ("middle:f=2", 1, 1, "")
    values = {c["defence"]: c["value"] for c in document["cells"] if c["phase"] == "defence"}
    assert values["middle:f=2"] == pytest.approx(values["trimmed_mean:f=2"], abs=1e-6)
    assert 'rule="middle:f=2")' in document["remedy"] and "plugins.use(" in document["remedy"]
    assert f"--use {tmp_path}" in document["cells"][-1]["repeat"]
    assert not (tmp_path / "__pycache__").exists()


STOPS = [("vertical", {}, "not of one shape"), ("vertical", {"columns": 60}, "no training reply"),
         ("failing", {"mode": "clients"}, "2 client errors without an attack; node"),
         ("failing", {"mode": "import"}, "No module named 'a_package_that_is_not_there'"),
         ("failing", {"mode": "exit"}, "SystemExit: 7"), ("query_only", {}, "no training message"),
         ("old_workflow", {"secure": True}, "secure aggregation")]  # fmt: skip


@pytest.mark.parametrize(("app", "overrides", "sentence"), STOPS, ids=str)
def test_apps_that_cannot_be_audited_say_why(cells, app, overrides, sentence):
    runs, _ = ran(cells, app, **overrides)
    assert sentence in classify(runs[0]).stop
    if app in ("old_workflow", "vertical"):
        assert runs[0].facts["client_error_count"] == 0


def test_nothing_to_break_and_no_metric_are_told(cells):
    cells.switch(read(APPS / "failing", overrides={"mode": "none"}))
    out = Phases(cells.application, Options(quick=True), cells).conduct()
    assert out.stop.startswith("nothing to break: accuracy is 0.1 before training and 0.1 after")
    cells.limit = 240.0


def test_an_app_that_nobody_evaluates_is_judged_by_distance(cells):
    cells.switch(read(APPS / "blind"))
    options = Options(attacks=["sign_flip:scale=4.0"], defences=[RULE], quick=True)
    out = Phases(cells.application, options, cells).conduct()
    assert out.judge.metric.source == "distance"
    (attacked,) = out.of("attack")
    assert attacked.outcome == "degrades" and attacked.value > 3
    cells.limit = 240.0


def test_a_hang_ends_at_the_limit_and_takes_its_children_along(cells):
    cells.switch(read(APPS / "failing", overrides={"mode": "hang"}))
    cells.limit = 20.0
    try:
        run = cells.run([Cell()])[Cell()]
    finally:
        cells.limit = 240.0
    assert run.status == "hung" and classify(run).stop == "the clean run had no end within 20 s"


def test_equal_seeds_give_equal_cells(cells):
    (first,), told = ran(cells, "fedavg")
    again, retold = ran(cells, "fedavg", Cell(seed=2))
    assert told[0] == retold[0] != retold[1]
    assert first.facts["server"] == again[0].facts["server"]


def test_a_hostile_app_is_contained(tmp_path):
    path = shutil.copytree(APPS / "hostile", tmp_path / "hostile")
    before = tree_hash(path)
    out = tmp_path / "out"
    attacks = ["exception", "silence", "extra_metric", "sign_flip:scale=4.0"]
    given = [text for attack in attacks for text in ("--attack", attack)]
    result = RUNNER.invoke(
        command, ["audit", str(path), *given, "--defence", RULE, "--seeds", "2", "--time-limit",
                  "30", "--output", str(out)],
    )  # fmt: skip
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
    assert tree_hash(path) == before and not (path / "result.txt").exists()
    document = json.loads((out / "audit.json").read_text())
    assert document["app"]["sha256_before"] == document["app"]["sha256_after"] == before
    phases = ("clean", "broken reply", "attack")
    bare = {c["attack"]: c["outcome"] for c in document["cells"] if c["phase"] in phases}
    assert bare == {"none": "holds", "exception": "ends the run", "silence": "ends the run",
                    "extra_metric": "hangs", "sign_flip:scale=4.0": "degrades"}  # fmt: skip
    page = (out / "audit.html").read_text()
    for text in (page, result.output):
        assert "<script" not in text and "\x1b]" not in text and "\x1b[2J" not in text
    assert not list(filter(left_behind, Path("/proc").glob("[0-9]*"))), "they are ended with it"


def test_an_interrupt_leaves_one_sentence_and_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "audit", str(APPS / "fedavg"), "--output",
         str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # In the background this process ignores SIGINT, and what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        end = time.monotonic() + 200
        while not list(tmp_path.glob("fedrobust-audit-*/*/output.txt")):  # a cell runs
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # to the audit alone: it has to end the others
        said, complained = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, complained
    assert re.search(r"^interrupted after \d+ cells; their results are dropped, nothing was "
                     r"written$", complained.strip().splitlines()[-1]), complained  # fmt: skip
    assert "Traceback" not in complained and not said.strip()
    assert not list(tmp_path.iterdir()), "neither results nor copies of the app"
    assert not [p for p in Path("/proc").glob("[0-9]*") if started_with(p, str(tmp_path))]


def started_with(process, text):
    """Whether a process was started with a text in its environment."""
    try:
        return text.encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def left_behind(process):
    """Whether it is what the hostile app starts and leaves, by its odd argument."""
    try:
        return (process / "cmdline").read_bytes() == b"sleep\x00612.5\x00"
    except OSError:
        return False


def test_an_app_with_the_rule_inside_holds():
    made = fedrobust.audit(APPS / "defended", quick=True, defences=[])
    assert (made.verdict, made.exit_code, made.summary.score) == ("holds", 0, 1.0)
    assert made.outcome.notes[0].startswith("Robust is a robust rule itself")


def test_one_audit_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = fedrobust.audit(APPS / "fedavg", quick=True, seeds=2)
    assert made.verdict == "weak" and made.exit_code == 1
    cells = made.cells
    bare = cells[(cells.defence == "none") & (cells.k > 0)].set_index("attack").outcome
    assert bare["wrong_shape"] == bare["extra_metric"] == "ends the run"
    assert bare["nan_value"] == "NaN" and bare["exception"] == "holds"
    assert bare["sign_flip:scale=4.0"] == "degrades"
    saved = cells[(cells.defence != "none") & (cells.k > 0)]
    assert len(saved) >= 10 and (saved.outcome == "holds").all()
    assert made.best.seam == "wrapper" and "Robust(strategy, rule=" in made.remedy
    assert json.loads(made.to_json())["verdict"]["word"] == "weak"
    again = fedrobust.audit(APPS / "fedavg", quick=True, cell="alie/2/none/grid/1/in_process")
    assert list(again.cells.attack)[-1] == "alie"
    assert not list(tmp_path.iterdir()), "nothing is written where it is called"


@exhaustive
def test_flowers_own_engine_says_the_same(tmp_path):
    pytest.importorskip("ray", reason="needs Flower's simulation engine")
    made = fedrobust.audit(
        APPS / "fedavg", attacks=["sign_flip:scale=4.0"], defences=[], seeds=2, quick=True,
        grid="flower",
    )  # fmt: skip
    cells = made.cells.set_index(["engine", "k", "seed"])
    engines = {(engine, k): cells.loc[(engine, k, 1)] for engine in ("in_process", "flower")
               for k in (0, 2)}  # fmt: skip
    assert engines["flower", 2].replaced == engines["in_process", 2].replaced == 6
    for k, outcome in ((0, "holds"), (2, "degrades")):
        assert engines["flower", k].outcome == engines["in_process", k].outcome == outcome
        close = pytest.approx(engines["in_process", k].value, abs=0.15)
        assert engines["flower", k].value == close, "Ray's runs are not seeded"
