"""The command line on a terminal: 80 columns, completion, listing, reruns, hints."""

import io
import os
import subprocess
import sys

import pytest
import tomli_w
from rich.console import Console

from experiments import completion, listing, listing_page
from experiments.cli import main
from experiments.progress import Live
from experiments.simulation import simulate
from fedrobust.experiment.load import expand


def command(monkeypatch, capsys, *arguments):
    """Call the command line in this process; return exit code, standard output and error."""
    monkeypatch.setattr(sys, "argv", ["fedrobust", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    said = capsys.readouterr()
    return code, " ".join(said.out.split()), " ".join(said.err.split())


@pytest.fixture
def file(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(small | {"rounds": 2, "sweep": {"rule": ["mean", "krum"]}}))
    return path


@pytest.mark.parametrize("sent", [False, True])
def test_the_progress_line_keeps_accuracy_and_eta_at_80_columns(small, sent):
    runs = expand(small | {"sweep": {"rule": ["nnm+geometric_median"], "attack": ["min_max"]}})
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, color_system=None)
    with Live(console, runs * 60, sent=sent) as live:
        row = {"round": 1, "accuracy": 0.8125, "bytes_up": 2e9, "bytes_down": 1e9}
        for _ in range(9):
            live.row(runs[0], row)
        live._bar.refresh()
    lines = [part for line in written.getvalue().splitlines() for part in line.split("\x1b[2K")]
    last = [line for line in lines if "ETA" in line][-1]
    assert "0/60 runs" in last and "81.2%" in last and len(last.strip()) <= 80
    assert "ETA" in last and "…" not in last.split("81.2%")[0], "nothing before it is cut"
    assert ("27.0 GB sent" in last) is sent, "inside one process nothing travels"


def test_a_simulation_in_python_shows_its_progress_when_asked(small, capsys):
    seen = []
    settings = {"sweep": {"rule": ["mean", "krum"]}, "rounds": 2}
    simulate(small, progress=True, on_row=lambda e, row: seen.append(row["round"]), **settings)
    said = capsys.readouterr().out
    assert "2/2  none / krum" in said and "first result:" in said and seen == [0, 1, 2] * 2
    simulate(small, **settings)
    assert capsys.readouterr().out == ""


def test_a_rerun_says_what_is_finished_and_fresh_runs_it_again(file, monkeypatch, capsys):
    call = ("run", file, "--workers", 1)
    code, said, _ = command(monkeypatch, capsys, *call)
    assert code == 0 and "already finished" not in said
    assert "fedrobust report results/tiny" in said and "fedrobust run" in said
    assert f"{file} -o attack=ipm" in said, "the hints name this run"
    stamps = {p: p.stat().st_mtime_ns for p in file.parent.rglob("rounds.jsonl")}
    _, said, _ = command(monkeypatch, capsys, *call)
    assert "2 of 2 runs are already finished in results/tiny (--fresh" in said
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    _, said, _ = command(monkeypatch, capsys, *call, "--fresh")
    assert "already finished" not in said
    assert all(p.stat().st_mtime_ns > stamp for p, stamp in stamps.items())
    code, _, wrong = command(monkeypatch, capsys, *call, "--fresh", "--resume")
    assert code == 2 and "--fresh starts every run anew, --resume continues" in wrong


def test_one_mistake_gets_one_suggestion(file, monkeypatch, capsys):
    for call in (("run", file, "-o", "attack=alei"), ("sweep", file, "-s", "attack=alei,none")):
        code, _, said = command(monkeypatch, capsys, *call)
        assert code == 2 and said.count("did you mean 'alie'?") == 1, said


def test_the_listing_is_a_page_that_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = list(listing_page.page(listing.tables(), full=False))
    assert len(lines) > 150 and max(map(len, lines)) <= 80
    krum = list(listing_page.page(listing.tables("rules"), full=True))
    assert max(map(len, krum)) <= 80
    text = "\n".join(krum)
    part = text[text.index("\nkrum\n") : text.index("\nmulti_krum\n")]
    assert "settings: f" in part and "needs:    n >= 2 f + 3" in part
    assert "bears:    the choice is one update close to a majority" in part and "paper:" in part
    attacks = "\n".join(listing_page.page(listing.tables("attacks"), full=True))
    assert "sees:     all honest updates, asks the rule" in attacks
    rules = listing.tables("rules")["rules"] + listing.tables("pre-aggregators")["pre-aggregators"]
    assert all(entry["needs"] and entry["bears"] for entry in rules)


def test_a_reader_that_has_enough_ends_the_listing_quietly():
    shell = "'{0}' -m experiments list rules | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell.format(sys.executable)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [
        (["run", "qui"], 2, ["quickstart"]),
        (["run", "tin"], 2, ["tiny.toml"]),
        (["run", "quickstart", "-o", "worker_"], 4, ["worker_momentum="]),
        (["run", "quickstart", "-o", "rule=multi_"], 4, ["rule=multi_krum"]),
        # as bash takes it apart: it replaces only what stands behind the "="
        (["run", "quickstart", "-o", "rule", "=", "multi_"], 6, ["multi_krum"]),
        (["run", "-o", "rounds", "=", "3", "quick"], 6, ["quickstart"]),
        (["sweep", "quickstart", "-s", "attack=none,ali"], 4,
         ["attack=none,alie", "attack=none,alie_backdoor"]),
        (["sweep", "quickstart", "-s", "rule=mean,nnm+multi_"], 4, ["rule=mean,nnm+multi_krum"]),
        (["list", "pre"], 2, ["pre-aggregators"]),
        (["benchmark", "nnm+multi_"], 2, ["nnm+multi_krum"]),
        (["run", "quickstart", "--grid", "f"], 4, ["flower"]),
    ],
)  # fmt: skip
def test_the_shell_completes_values(file, words, place, expected):
    words = ["fedrobust", *words]
    environment = os.environ | {
        "_FEDROBUST_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(place),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    entry = "import sys; sys.argv = ['fedrobust']; from experiments.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", entry],
        env=environment, cwd=file.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == expected, done.stderr


def test_every_name_that_is_completed_is_in_a_table():
    every = listing.tables()
    assert {kind for kinds in completion.KINDS.values() for kind in kinds} <= set(every)
    assert "server.lr" in completion._keys() and "rule" in completion._keys()
