"""Tables, intervals, sweeps from the command line, and the report: one page on its own."""

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import tomli_w

from experiments import tables
from experiments.cli import main
from experiments.coefficients import compared, marks, published
from experiments.report import build, folders_in, heat, sections, votes
from experiments.report.contents import measures, widen
from experiments.report.load import gather
from experiments.results import Results, load
from experiments.simulation import simulate
from fedrobust.experiment.load import expand, from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.runs.folder import RunFolder
from tests.conftest import finals

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path", "rect", "line", "circle"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Sweep once through the command line: 2 rules x 2 attacks x 2 seeds on the digits."""
    from tests.conftest import SMALL

    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps(SMALL | {"sweep": {"attack": ["none", "nan"]}}))
    call = ["sweep", file, "-s", "rule=mean,krum", "--seeds", 2, "--workers", 1, "--json", "-q"]
    return folder, call


@pytest.fixture(scope="module")
def output(swept):
    folder, call = swept
    code, said = command(*call, "--output", folder / "results")
    assert code == 0
    return folder / "results" / "tiny", json.loads(said)


def command(*arguments):
    """Call the command line in this process; return its exit code and what it printed."""
    import contextlib
    import io

    said = io.StringIO()
    before, sys.argv = sys.argv, ["fedrobust", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said):
            main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    return code, said.getvalue()


class Page(HTMLParser):
    """What a page holds: tags that balance, addresses, the text of each table cell."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_half_width_by_hand():
    # mean 2, s = 1, n = 3: t(0.975, 2) = 4.302653, so 4.302653 / sqrt(3)
    assert tables.half_width([1.0, 2.0, 3.0]) == pytest.approx(2.484138, abs=1e-6)
    assert math.isnan(tables.half_width([1.0]))
    assert tables.half_width([1.0, 2.0, 3.0, float("nan")]) == pytest.approx(2.484138, abs=1e-6)


def test_tables_for_papers():
    means = pd.DataFrame({"none": [0.9, 0.8], "a_b": [0.1, float("nan")]}, index=["x", "50%_y"])
    halves = pd.DataFrame({"none": [0.01, float("nan")], "a_b": [0.02, 0.0]}, index=means.index)
    assert tables.render(means, halves, format="markdown") == (
        "|  | none | a_b |\n| --- | --- | --- |\n"
        "| x | 90.0 ± 1.0 | 10.0 ± 2.0 |\n| 50%_y | 80.0 | - |\n"
    )
    written = tables.render(means, halves, format="latex")
    assert r"\textbf{90.0 $\pm$ 1.0} & \textbf{10.0 $\pm$ 2.0} \\" in written
    assert r"50\%\_y & 80.0 & - \\" in written
    assert r"defence & none & a\_b \\" in written
    with pytest.raises(ConfigError, match="did you mean 'latex'"):
        tables.render(means, halves, format="latx")


def test_the_worst_attack_is_the_score(small):
    results = finals(small, {
        ("mean", "none", 1): 0.9, ("mean", "none", 2): 0.8,
        ("mean", "zero", 1): 0.5, ("mean", "zero", 2): 0.3,
        ("krum", "none", 1): 0.6, ("krum", "none", 2): 0.6,
        ("krum", "zero", 1): 0.7, ("krum", "zero", 2): 0.7,
    })  # fmt: skip
    table, interval = results.table(), results.interval()
    assert table.at["mean", "worst"] == pytest.approx(0.4)
    assert table.at["krum", "worst"] == pytest.approx(0.6)
    # two values: t(0.975, 1) = 12.7062, half width = 12.7062 * |a - b| / 2
    assert interval.at["mean", "none"] == pytest.approx(0.635310, abs=1e-6)
    assert interval.at["mean", "worst"] == interval.at["mean", "zero"]
    assert interval.at["krum", "worst"] == 0
    against = results.against("krum").set_index(["attack", "defence"])
    assert against.at[("zero", "mean"), "difference"] == pytest.approx(-0.3)
    assert against.at[("none", "mean"), "seeds"] == 2
    with pytest.raises(ConfigError, match="did you mean 'krum'"):
        results.against("krm")


def test_results_stand_side_by_side_once(small):
    one = finals(small, {("mean", "none", 1): 0.9})
    two = finals(small, {("krum", "none", 1): 0.6})
    both = one.compare(two, one)
    assert len(both.runs) == 2
    assert list(both.table().index) == ["mean", "krum"]
    assert "<table" in both._repr_html_() and "krum" in both._repr_html_()


def test_a_sweep_from_the_command_line(output):
    folder, said = output
    scores = [row["worst"] for row in said["table"].values()]
    assert set(said["table"]) == {"mean", "krum"} and scores == sorted(scores, reverse=True)
    assert list(said["table"]["krum"]) == ["none", "nan", "worst"]
    assert set(said["interval"]["krum"]) == {"none", "nan", "worst"}
    assert len(said["runs"]) == 8
    assert said["report"] == str(folder / "report.html")
    names = {"table.md", "table.csv", "table.tex", "heat_map.png", "report.html"}
    assert names <= {p.name for p in folder.iterdir()}
    assert "±" in (folder / "table.md").read_text()


def test_a_finished_sweep_is_only_read_again(swept, output):
    folder, call = swept
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("rounds.jsonl")}
    assert len(stamps) == 8
    call = [word for word in call if word != "--json"]
    code, said = command(*call, "--table", "latex", "--output", folder / "results")
    assert code == 0
    assert said.startswith(r"\begin{tabular}{lrrr}") and said.endswith("\\end{tabular}\n")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("rounds.jsonl")} == stamps


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-s", "rule=krun,mean"], "did you mean 'krum'"),
        (["-s", "rule"], "a sweep axis is key=a,b,c, got 'rule'"),
        (["-s", "rule=[1,"], "needs a TOML list or values with commas"),
        (["--table", "latx"], "did you mean 'latex'"),
    ],
)
def test_a_wrong_sweep_is_refused_before_it_starts(swept, capsys, options, sentence):
    folder, call = swept
    code, _ = command(*call, *options, "--output", folder / "wrong")
    assert code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (folder / "wrong").exists()


def test_the_report_is_one_page_that_needs_nothing(output):
    folder, said = output
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") >= 4
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.addresses, "the tables can be taken away as CSV"
    assert all(a.startswith(("data:text/csv;base64,", "#")) for a in page.addresses)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    words = " ".join(page.words)
    for title in ("Final accuracy", "Attacks and defences", "Accuracy over rounds",
                  "Cost against worst case", "What the attackers got", "Clients and rounds",
                  "Robustness coefficient", "Replies that lost their vote",
                  "Who holds which data", "Time and bytes a round",
                  "Configuration", "Environment", "How to reproduce"):  # fmt: skip
        assert title in words
    score = max(row["worst"] for row in said["table"].values())
    assert f"{score:.1%} under its worst attack" in words


def test_the_numbers_in_the_page_are_those_of_the_runs(output):
    folder, said = output
    page = Page((folder / "report.html").read_text())
    shown = {word.strip() for word in page.words}
    for row in said["table"].values():
        for value in row.values():
            assert f"{value * 100:.1f}" in shown
    assert "update holds values that are not finite" in shown


def test_measured_coefficients_stand_beside_the_published_one(small):
    rows = [
        [{"round": 1, "kappa": a}, {"round": 2, "kappa": b}] for a, b in ((0.5, 1.5), (9.0, 7.0))
    ]
    runs = [from_dict({**small, "rule": rule, "attack": "ipm"}) for rule in ("krum", "rfa")]
    results = Results(tuple(zip(runs, rows, strict=True)))
    found = compared(results.frame, runs)
    assert found.loc["krum", "ipm"].tolist() == pytest.approx([6 * (1 + 2 / 6), 1.0, 1.5])
    assert math.isnan(found.at[("rfa", "ipm"), "published"])
    assert found.at[("rfa", "ipm"), "worst"] == 9
    assert marks(found) == {"krum": pytest.approx(8.0)}
    weighted = from_dict({**small, "rule": "median", "weights": "truncated:share=0.4"})
    assert published(weighted) is None and published(from_dict({**small, "rule": "median"})) == (
        pytest.approx(4 * (1 + 2 / 6) ** 2)
    )


def test_a_report_is_reproducible(output):
    folder, _ = output
    one, two = build(folders_in(folder)), build(folders_in(folder))
    assert one == two
    ids = re.findall(r' id="([^"]+)"', one)
    assert len(ids) == len(set(ids))


def test_the_page_allows_its_own_script_only(output):
    """A script that got in by a client's words would not be the one of the digest."""
    text = (output[0] / "report.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1 and text.count("<script") == 3  # two hold data
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert scripts[0].count("\n") < 120 and "innerHTML" not in scripts[0]


def test_one_order_everywhere(small, tmp_path):
    results = finals(small, {
        ("mean", "zero", 1): 0.1, ("mean", "none", 1): 0.9, ("mean", "ipm", 1): 0.5,
        ("krum", "zero", 1): 0.7, ("krum", "none", 1): 0.6, ("krum", "ipm", 1): 0.6,
        ("median", "zero", 1): 0.3, ("median", "none", 1): 0.8, ("median", "ipm", 1): 0.7,
    })  # fmt: skip
    rows, columns = ["krum", "median", "mean"], ["none", "zero", "ipm", "worst"]
    assert list(results.table().index) == rows and list(results.table()) == columns
    assert list(results.interval().index) == rows == list(results.spread().index)
    page = results.report(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page
    for text in (page, results._repr_html_()):
        heat = text[text.index("<table class='heat'") :]
        assert re.findall(r"<tr data-d='(\w+)'", heat)[:3] == rows
        assert re.findall(r"<th scope='col'[^>]*>(\w+)<", heat)[:4] == columns
    legend = re.findall(r'<input type="checkbox" checked data-of="d" value="(\w+)"', page)
    assert legend == rows
    drawn = results.plot(rounds=True)
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == rows
    assert [a.get_title() for a in drawn.axes] == [f"attack: {name}" for name in columns[:3]]
    ticks = [t.get_text() for t in results.plot().axes[0].get_yticklabels()]
    assert ticks == rows


def test_gaps_by_hand():
    means = pd.DataFrame(
        {"none": [0.8, 0.9], "ipm": [0.7, 0.1], "worst": [0.7, 0.1]}, index=["krum", "mean"]
    )
    lost = sections.gaps(means, "max")
    assert lost["lost to worst"].tolist() == pytest.approx([-0.1, -0.8])
    assert lost["lost without"].tolist() == pytest.approx([-0.1, 0.0])
    assert sections.gaps(means.drop(columns="none"), "max") is None
    errors = pd.DataFrame({"none": [2.0, 1.0], "ipm": [5.0, 9.0], "worst": [5.0, 9.0]})
    assert sections.gaps(errors, "min")["lost to worst"].tolist() == [-3.0, -8.0]


def test_f_and_heterogeneity_get_a_picture_each(small, tmp_path):
    swept = {"byzantine": [1, 2], "partition": ["iid", {"name": "dirichlet", "alpha": 0.5},
             {"name": "dirichlet", "alpha": 0.1}], "rule": ["mean", "krum"]}  # fmt: skip
    runs = expand(small | {"attack": "ipm", "sweep": swept})
    rows = [{"round": 3, "accuracy": 0.9 - 0.1 * e.byzantine, "seconds": 0.1} for e in runs]
    results = Results(tuple((e, [row]) for e, row in zip(runs, rows, strict=True)))
    page = results.report()
    assert "Accuracy against f" in page and "Accuracy against heterogeneity" in page
    chart = page[page.index("Accuracy against f<") :]
    line = re.search(r'<g data-d="mean" data-x="([^"]+)" data-y="([^"]+)"', chart)
    assert line[1] == "1 2" and line[2] == "80 70"
    places = re.search(r"Accuracy against heterogeneity<.*?</svg>", page, re.DOTALL)[0]
    at = [places.index(word) for word in (">iid<", ">dirichlet 0.5<", ">dirichlet 0.1<")]
    assert at == sorted(at)
    plain = finals(small, {("mean", "none", 1): 0.9}).report()
    assert "against f<" not in plain and "against heterogeneity<" not in plain


def test_who_counted_is_drawn_client_by_client(small):
    (e,) = expand(small | {"attack": "ipm", "rule": "krum"})
    row = {"round": 1, "replies": 8, "byzantine": [3, 7],
           "weights": [0.125, 0.02, 0.3, 0.0, None, 0.125, 0.13, 0.05, 0.125, 0.125],
           "rejected": [{"client": 4, "node": 9, "reason": "malformed"},
                        {"client": 99, "node": 9, "reason": "no such client"}]}  # fmt: skip
    one = votes.matrix_of(e, [{"round": 0}, row])
    letters = dict(zip(map(int, one.names), one.cells, strict=True))
    assert letters == {0: "2", 1: "1", 2: "3", 3: "0", 4: "r", 5: "2", 6: "2", 7: "1", 8: "2",
                       9: "2"}  # fmt: skip
    assert one.names[:2] == ["3", "7"] and one.marked == [True, True, *[False] * 8]
    del row["weights"]
    row |= {"replies": 9, "rejected": row["rejected"][:1]}
    assert set(votes.matrix_of(e, [row]).cells) == {"c", "r"}
    assert set(votes.matrix_of(e, [row | {"replies": 5}]).cells) == {"u", "r"}


def test_results_are_saved_as_a_run_would_have_left_them(small, tmp_path):
    results = simulate(small, sweep={"attack": ["none", "nan"]}, rounds=2, keep_models=True)
    folder = results.save(tmp_path / "kept")
    names = {"table.md", "table.csv", "table.tex", "heat_map.png", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    again = load(folders_in(folder))
    assert again.table().equals(results.table().reindex_like(again.table()))
    assert len(list(folder.glob("*/model.safetensors"))) == 2
    with pytest.warns(UserWarning, match="not every result kept its models"):
        assert len(results.compare(again).runs) == 2, "the same rows"


def test_the_report_of_one_run_and_of_none(output, tmp_path):
    folder, _ = output
    run = folders_in(folder)[0]
    assert folders_in(run) == [run]
    code, said = command("report", run, "--output", tmp_path / "page.html")
    assert code == 0 and "written:" in said
    assert "Final test accuracy" in (tmp_path / "page.html").read_text()
    (tmp_path / "empty").mkdir()
    assert command("report", tmp_path / "empty")[0] == 2


def test_hostile_words_are_escaped(small, tmp_path):
    """A reason comes from a client: it may hold anything."""
    (e,) = expand(small)
    folder = RunFolder(tmp_path, e)
    evil = "<script>alert(1)</script>"
    with folder.recording():
        folder.append({"round": 0, "accuracy": 0.1, "seconds": 0.1})
        rejected = [{"client": 0, "node": 1, "reason": evil}]
        row = {"round": 3, "accuracy": 0.5, "seconds": 0.1, "rejected": rejected, "kept": evil}
        costs = {"bytes_by_stage": {"commit": 44, "reveal": 670}, "seconds_commit": 0.25}
        folder.append(row | {"detection_recall": 0.5, "nested": {"precision": 0.75}, **costs})
    text = build([folder.path])
    assert evil not in text and "&lt;script&gt;" in text
    assert "<h2>Clients and rounds" not in text, "the row says nothing of replies"
    folder.append({"round": 3, "replies": 9, "weights": [evil] * 10, "rejected": rejected})
    assert evil not in build([folder.path])
    assert "Detection recall over rounds" in text
    assert measures(widen(load([folder.path]).frame)) == ["detection_recall", "nested/precision"]
    assert "Nested/precision over rounds" in text
    assert "bytes by stage/commit" in text and "seconds commit" in text


def test_a_data_set_that_is_not_at_hand_is_said(small, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    (e,) = expand(small | {"data": "cifar10", "model": "cnn"})
    folder = RunFolder(tmp_path, e)
    with folder.recording():
        folder.append({"round": 3, "accuracy": 0.5, "seconds": 0.1})
    assert "the data set is not at hand" in build([folder.path])
    assert len(gather([folder.path]).environments) == 1


def test_cells_are_readable():
    """Ink and ground keep the contrast of 4.5 that WCAG asks for, over the whole scale."""
    for step in range(101):
        ground, ink = heat.colours(step / 100)
        red, green, blue = map(int, re.findall(r"\d+", ground))
        light, dark = heat.luminance(red, green, blue), (1.0 if ink == "#fff" else 0.0)
        high, low = max(light, dark), min(light, dark)
        assert (high + 0.05) / (low + 0.05) >= 4.5


HARNESS = """
<iframe id=f src="file://{page}" style="border:0;width:{width}px;height:900px"></iframe>
<script>f.onload = () => {{ const r = f.contentDocument.documentElement;
const d = f.contentDocument, box = d.querySelector("nav input"), w = f.contentWindow;
const heads = [...d.querySelectorAll(".heat thead th")].slice(0, 4), names = () =>
  [...d.querySelectorAll(".heat")][0].tBodies[0].rows;
const before = names()[0].dataset.d; heads.find((h) => h.textContent === "worst").click();
const first = names()[0].dataset.d; heads.find((h) => h.textContent === "worst").click();
const last = names()[0].dataset.d;
box.checked = false; box.dispatchEvent(new w.Event("change"));
const mine = [...d.querySelectorAll(`[data-d="${{box.value}}"]`)];
const hidden = mine.length > 3 && mine.every((one) => one.classList.contains("off"));
const score = d.querySelector(".heat td.worst").getBoundingClientRect();
box.checked = true; box.dispatchEvent(new w.Event("change"));
const chart = d.querySelector("svg.chart"), area = chart.getBoundingClientRect();
const [x, y] = d.querySelector("g[data-at]").dataset.at.split(" ")[0].split(",").map(Number);
chart.dispatchEvent(new w.PointerEvent("pointermove", {{ clientX: area.left + x * area.width / 360,
  clientY: area.top + y * area.height / 230 }}));
const tip = d.querySelector("#tip");
document.title = r.scrollWidth + " of " + r.clientWidth + " with " +
d.querySelectorAll("svg path").length + " paths; " + [first === before, last !== first, hidden,
score.right <= r.clientWidth && score.left > 0, !tip.hidden && tip.textContent.includes("round"),
d.querySelectorAll("select option").length].join(" "); }}</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_real_browser_shows_it_without_scrolling_sideways(output, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium")
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(page=output[0] / "report.html", width=width))
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
               "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=5000",
               f"--user-data-dir={tmp_path}/profile", f"file://{harness}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<title>(\d+) of (\d+) with (\d+) paths; ([^<]+)</title>", done.stdout)
    assert found, done.stderr[-500:]
    needed, there, paths = map(int, found.groups()[:3])
    assert needed <= there == width and paths > 50
    # Sorted by a click and back, hidden by a box, the score on the screen, a number under the
    # pointer, another run to choose.
    assert found[4] == "true true true true true 4"


def test_the_shell_completes_commands():
    environment = os.environ | {"_FEDROBUST_COMPLETE": "complete_bash",
                                "COMP_WORDS": "fedrobust re", "COMP_CWORD": "1"}  # fmt: skip
    entry = "import sys; sys.argv[0] = 'fedrobust'; from experiments.cli import app; "
    done = subprocess.run(
        [sys.executable, "-c", entry + "app(prog_name='fedrobust')"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == ["recommend", "report"], done.stderr
