"""``make gpu`` on a machine without one: every case runs, nothing imports Ray, all is written."""

import importlib.abc
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elsewhere_device import DEVICE, Device

from experiments.benchmarks.gpu import budget, images, machine, marked, page
from experiments.benchmarks.gpu.budget import Budget, Course
from experiments.benchmarks.gpu.ledger import Ledger, Record
from experiments.benchmarks.gpu.plan import CASES, Case, Scale
from experiments.benchmarks.gpu.work import measured, work

ROOT = Path(__file__).parents[2]
ON_RAY = "stock"
QUICK = ("engine",)
ALONE = "marked"  # its tests have a process of their own


class NoRay(importlib.abc.MetaPathFinder):
    """Ray is not installed, as on most machines with a GPU."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name=fullname)


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [NoRay(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def scale(tmp_path):
    return Scale("cpu", pretend=True, data_root=None, folder=tmp_path, seconds=600.0)


def lines_of(name, scale, skip=()):
    lines = io.StringIO()
    work(name, scale, skip=skip, lines=lines)
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def every_case(*left_out):
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
        if name not in left_out
    ]


@pytest.mark.parametrize("name", every_case(ON_RAY))
def test_every_case_runs_at_a_tiny_size_without_ray(name, scale, no_ray):
    assert not CASES[name].lacks
    first, *rows = lines_of(name, scale)
    assert [row["cell"] for row in rows] == first["names"] and rows
    assert all("error" not in row["row"] and not row["row"].get("cut") for row in rows), rows
    assert "ray" not in sys.modules


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [n for n in CASES if n not in (ON_RAY, ALONE, "rules", "order")])
def test_no_case_mixes_the_memories_of_two_devices(name, scale):
    with Device():
        _, *rows = lines_of(name, replace(scale, device=DEVICE.type))
    assert all("error" not in row["row"] for row in rows), rows


def test_what_needs_ray_says_so_where_there_is_none(no_ray):
    assert CASES[ON_RAY].lacks == ["ray"]
    assert [case.name for case in CASES.values() if case.lacks] == [ON_RAY]


def test_the_marked_tests_are_found():
    named = {path.name for path in marked.files()}
    assert {"test_aggregation.py", "test_attacks.py", "test_compression.py"} <= named
    assert marked.counted("x\n3 passed, 1 skipped, 2 errors in 1.0s") == {
        "passed": 3, "failed": 0, "skipped": 1, "errors": 2,
    }  # fmt: skip


def test_a_cell_that_raises_costs_itself_alone(scale):
    def broken(scale):
        raise RuntimeError("CUDA out of memory\nmore")

    assert measured(("x", broken), scale) == {"error": "RuntimeError: CUDA out of memory"}


def test_a_cell_that_is_done_or_out_of_time_is_left(scale, monkeypatch):
    called = []
    both = [("a", lambda scale: called.append("a") or {}), ("b", lambda scale: called.append("b"))]
    monkeypatch.setattr(Case, "cells", lambda self, scale: iter(both))
    assert [line.get("cell") for line in lines_of("rules", scale, ["a"])] == [None, "b"]
    assert [line.get("cell") for line in lines_of("rules", replace(scale, seconds=1.0))] == [None]
    assert called == ["b"]


# Ledger, page


def test_the_ledger_knows_what_is_left(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", "one GPU")
    ledger.append("rules", names=["a", "b", "c"])
    ledger.append("rules", cell="a", row={"seconds": 1.0})
    ledger.append("rules", cell="b", row={"error": "RuntimeError: no"})
    ledger.append("rules", cell="c", row={"seconds": 9.0, "cut": True})
    Ledger(ledger.path, "another GPU").append("rules", cell="b", row={"seconds": 2.0})
    with ledger.path.open("a") as file:
        file.write('{"identity": "one GPU", "ca')
    record = ledger.records()["rules"]
    assert record.measured == ["a"] and not record.finished
    again = Ledger(tmp_path / "b.jsonl", "one GPU")
    for cell in "abc":
        again.append("rules", names=["a", "b", "c"])
        again.append("rules", cell=cell, row={"cut": False})
    assert again.records()["rules"].finished


def test_the_page_says_what_is_missing():
    rows = {"a": {"seconds": 0.123456, "ok": True}, "b": {"error": "Error: a | b"}}
    facts = {"GPU": "H200", "driver": "580", "empty": ""}
    records = {"rules": Record(["a", "b"], rows, "ended after its limit")}
    text = "\n".join(page.lines(facts, records))
    assert "# On a GPU: H200" in text and "| driver | 580 |" in text and "| empty" not in text
    assert "Ended after its limit. Not measured: b." in text
    assert "| a | 0.1235 | yes |  |" in text and "Error: a \\| b" in text
    assert text.count("Not measured.") == len(CASES) - 1
    assert "All measured." in page.sentence(Record(["a"], {"a": {}}))


def test_machine_and_versions_are_told():
    facts = machine.described("cpu")
    assert facts["GPU"] == "none: pretended on cpu" and facts["torch"] != "not installed"
    assert machine.commit() in facts["fedrobust"] and machine.sources() in facts["fedrobust"]
    assert "TF32" in facts and machine.version("no-such-package") == "not installed"


# Budget


def course(tmp_path, names=("rules",)):
    ledger = Ledger(tmp_path / "a.jsonl", "x")
    told = []
    return Course("cpu", True, None, tmp_path, ledger, told=lambda: told.append(1)), ledger


def child(text):
    """A case's process that prints a Python text."""
    return lambda self, case, record, seconds: [sys.executable, "-c", text, *record.measured]


def test_a_case_is_run_until_it_is_finished_and_then_no_more(tmp_path, monkeypatch, capsys):
    runs, ledger = course(tmp_path)
    monkeypatch.setattr(Course, "_command", child(
        "import json, sys; print(json.dumps({'names': ['a', 'b']}));"
        "cell = 'b' if 'a' in sys.argv else 'a'; print(json.dumps({'cell': cell, 'row': {}}))"
    ))  # fmt: skip
    runs.run(["rules"], Budget(1))
    assert ledger.records()["rules"].status == "not all measured within 1.0 minutes"
    runs.run(["rules"], Budget(1))
    assert ledger.records()["rules"].status == "done"
    runs.run(["rules"], Budget(1))
    assert "rules: finished before" in capsys.readouterr().out


def test_a_case_beyond_the_budget_is_not_begun(tmp_path, monkeypatch):
    runs, ledger = course(tmp_path)
    monkeypatch.setattr(Course, "_command", child("raise SystemExit(1)"))
    runs.run(["rules"], Budget(0.2))
    expected = "not measured: budget (0.2 minutes left, needs 0.3)"
    assert ledger.records()["rules"].status == expected


def test_a_case_that_fails_or_hangs_is_ended_and_the_next_one_begins(tmp_path, monkeypatch):
    runs, ledger = course(tmp_path)
    monkeypatch.setattr(Course, "_command", child("raise SystemExit('no device')"))
    runs.run(["rules"], Budget(1))
    assert ledger.records()["rules"].status == "failed with exit code 1: no device"
    monkeypatch.setattr(budget, "GRACE", 0.0)
    monkeypatch.setattr(Course, "_command", child(
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c',"
        "'import time; time.sleep(60)']); time.sleep(60)"
    ))  # fmt: skip
    monkeypatch.setitem(CASES, "rules", Case("rules", "", 0.0, 0.02))
    began = time.monotonic()
    replace(runs, pretend=False).run(["rules"], Budget(5))
    assert time.monotonic() - began < 30
    assert ledger.records()["rules"].status == "ended after its limit of 0.0 minutes"


# Images


def test_a_stand_in_says_that_it_is_one(scale, tmp_path, monkeypatch):
    with images.cifar10(scale, 9000) as (name, told):
        assert told == "FashionMNIST's sample at 3x32x32 in place of CIFAR-10, repeated"
        dataset = images.load(name)
        assert dataset.shape == (3, 32, 32) and len(dataset.train_labels) == 9000
    arrays = {}
    for part, count in (("train", 4), ("test", 2)):
        arrays[f"{part}_images"] = np.full((count, 32, 32, 3), 7, np.uint8)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)
    np.savez(tmp_path / images.SAMPLE, **arrays)
    real = replace(scale, pretend=False, data_root=str(tmp_path))
    with images.cifar10(real, 4) as (name, told):
        assert told == "a sample of CIFAR-10" and images.load(name).test_labels.tolist() == [0, 1]


def test_the_full_set_is_taken_where_it_is(scale, data_root):
    dataset, told = images.found(data_root)
    assert told == "CIFAR-10" and len(dataset.train_labels) == images.FULL


# The command


def call(*arguments, **given):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)  # fmt: skip


@pytest.mark.slow
def test_the_command_goes_on_after_an_interruption(tmp_path):
    options = ("--pretend", "--output", tmp_path, "--cases", "engine", "flute")
    process = call(*options, start_new_session=True)
    for line in process.stdout:
        if "engine: " in line and "measured" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    ledger = tmp_path / "gpu_pretended.jsonl"
    before = ledger.read_text().count('"cell"')
    assert before >= 1
    out, err = call(*options).communicate(timeout=500)
    assert "engine: done" in out and "flute: done" in out, out + err
    cells = [json.loads(text)["cell"] for text in ledger.read_text().splitlines() if "cell" in text]
    assert len(cells) == len(set(cells)), "a finished cell is not measured again"
    text = (tmp_path / "gpu_pretended.md").read_text()
    assert text.count("All measured.") == 2 and "| CPU | " in text


@pytest.mark.slow
def test_without_a_gpu_the_command_says_so():
    out, err = call("--budget", "1").communicate(timeout=100)
    assert "PyTorch sees no GPU here, and nothing was measured" in err and not out
