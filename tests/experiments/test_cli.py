"""The command line, as its users meet it: exit codes, sentences, files."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from experiments import listing
from experiments.cli import main
from experiments.labels import distinct
from experiments.results import Results, load
from fedrobust import aggregation, attacks, plugins
from fedrobust.experiment.load import expand, from_dict, read
from fedrobust.runs.folder import FolderError, RunFolder

ROOT = Path(__file__).parents[2]


def call(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "FEDROBUST_DATA"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "experiments", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture
def file(small, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(small))
    return path


@pytest.mark.slow
def test_run_writes_what_it_promises_and_skips_what_is_done(small, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(small | {"sweep": {"rule": ["mean", "krum"],
                                                     "attack": ["none", "nan"]}}))  # fmt: skip
    done = call("run", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["table"]) == ["mean", "krum"]
    assert set(report["table"]["krum"]) == {"none", "nan", "worst"}
    assert len(report["runs"]) == 4
    for entry in report["runs"]:
        folder = tmp_path / entry["folder"]
        config = tomllib.loads((folder / "config.toml").read_text())
        assert from_dict(config).run_id == entry["run"]
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["packages"]["torch"]
        rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert [row["round"] for row in rows] == [0, 1, 2, 3]
    output = tmp_path / "results" / "tiny"
    assert (output / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "table.md").read_text().count("\n") == 4
    before = {p: p.stat().st_mtime_ns for p in output.rglob("rounds.jsonl")}
    again = call("run", path, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["table"] == report["table"]
    assert {p: p.stat().st_mtime_ns for p in output.rglob("rounds.jsonl")} == before


@pytest.fixture
def wrong(monkeypatch, capsys, tmp_path):
    """Call the command line in this process; return the sentence with which it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)

    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedrobust", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return " ".join(said.split())

    return refused


def test_a_wrong_call_ends_without_a_traceback(file, tmp_path):
    done = call("run", file, "-o", "rule=krun", cwd=tmp_path)
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == "error: unknown rule 'krun'; did you mean 'krum'?"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rle=mean", "unknown key 'rle'; did you mean 'rule'?"),
        ("rule=krun", "unknown rule 'krun'; did you mean 'krum'?"),
        ("rule=krum:f=5", "krum with f=5 needs at least 13 updates, got 10"),
        ("data=fashionmist", "unknown data set 'fashionmist'; did you mean 'fashionmnist'?"),
        ("data=cifar10", "--data-root"),
        ("clients=5000", "needs as many images, got 1438"),
        ("nonsense", "an override is key=value, got 'nonsense'"),
    ],
)
def test_each_error_is_one_clear_message(file, wrong, override, sentence):
    assert sentence in wrong("run", file, "-o", override)


def test_malformed_file_missing_file_unknown_grid(file, tmp_path, wrong):
    bad = tmp_path / "bad.toml"
    bad.write_text("clients = = 3")
    assert "malformed TOML" in wrong("run", bad)
    assert "cannot read" in wrong("run", tmp_path / "absent.toml")
    assert "did you mean 'flower'" in wrong("run", file, "--grid", "flour")


def test_check_and_list(file, tmp_path, wrong):
    done = call("check", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trimmed_mean f=2" in done.stdout
    listed = json.loads(call("list", "--json", cwd=tmp_path).stdout)
    assert {e["name"] for e in listed["rules"]} == set(aggregation.RULES)
    assert {e["name"] for e in listed["attacks"]} == set(attacks.ATTACKS)
    assert "did you mean 'rules'" in wrong("list", "rule")


def test_every_plugin_says_what_it_does():
    entries = [e for table in listing.tables().values() for e in table]
    assert len(entries) > 60
    assert all(e["what"] for e in entries)


def test_shipped_configurations_build():
    shipped = sorted((ROOT / "experiments").rglob("*.toml"))
    experiments = [p for p in shipped if "attack" in read(p)]
    assert ROOT / "experiments" / "quickstart.toml" in experiments
    assert len(experiments) >= 18
    for path in experiments:
        if path.with_suffix(".py").exists():  # to be named by --use
            plugins.use(path.with_suffix(".py"))
        assert expand(read(path))


def test_the_default_flower_app_builds():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    config = document["tool"]["flwr"]["app"]["config"]
    assert from_dict(tomllib.loads(config["experiment"])).clients == 20
    overridden = {d.split(" ")[0] for d in document["tool"]["uv"]["override-dependencies"]}
    needed = [*document["project"]["dependencies"],
              *(d for extra in document["project"]["optional-dependencies"].values()
                for d in extra)]  # fmt: skip
    names = {re.split("[>=[]", d)[0] for d in needed}
    assert names == overridden, "what `uv sync` would install for each run"


def test_two_processes_cannot_hold_one_folder(small, tmp_path):
    experiment = from_dict(small)
    with (
        RunFolder(tmp_path, experiment).recording(),
        pytest.raises(FolderError, match="another process"),
        RunFolder(tmp_path, experiment).recording(),
    ):
        pass


def test_a_line_cut_off_by_a_kill_is_left_out(small, tmp_path):
    folder = RunFolder(tmp_path, from_dict(small))
    with folder.recording():
        folder.append({"round": 0})
        with (folder.path / "rounds.jsonl").open("a") as file:
            file.write('{"round": 1, "accu')
    assert folder.rows() == [{"round": 0}]
    assert not folder.finished


def test_a_single_run_draws_its_curve(file, tmp_path):
    done = call("run", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "final test accuracy" in done.stdout
    output = tmp_path / "results" / "small"
    assert (output / "accuracy.png").is_file()
    results = load(p.parent for p in output.rglob("rounds.jsonl"))
    assert results.table("markdown").startswith("|  | none | worst |")


def test_namesakes_are_told_apart_by_what_differs():
    a, b = {"name": "alie", "z": 1.0, "ddof": 0}, {"name": "alie", "z": 1.5, "ddof": 0}
    krum, nnm = {"name": "krum", "f": 2}, {"name": "nnm", "f": 2}
    assert distinct([[a], [b], [{"name": "nan"}]]) == ["alie z=1.0", "alie z=1.5", "nan"]
    assert distinct([[nnm, krum], [krum]]) == ["nnm+krum", "krum"]
    assert distinct([[a], [a]]) == ["alie", "alie"]


def test_runs_that_differ_elsewhere_are_not_averaged(small):
    runs = expand(small | {"sweep": {"server.lr": [0.1, 0.2], "partition": ["iid", "shards"]}})
    table = Results(tuple((e, [{"round": 0, "accuracy": e.server.lr}]) for e in runs)).table()
    assert len(table) == 4
    assert "trimmed_mean [partition=iid, server.lr=0.1]" in table.index
    seeds = expand(small, seeds=3)
    assert len(Results(tuple((e, [{"round": 0, "accuracy": 0.5}]) for e in seeds)).table()) == 1


def test_distortion_prints_the_table(tmp_path, wrong):
    sizes = ("--workers", 7, "--replication", 3)
    done = call("distortion", "--scheme", "aspis", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| 3 | 10/35 = 0.2857 |" in done.stdout
    again = call("distortion", "--scheme", "aspis", *sizes, "--json", cwd=tmp_path)
    rows = json.loads(again.stdout)
    assert [row["count"] for row in rows] == [0, 2, 10]
    assert "did you mean 'aspis'" in wrong("distortion", "--scheme", "apsis")
    even = wrong("distortion", "--scheme", "aspis", "--replication", 16)
    assert "replication must be odd and positive, got 16" in even
