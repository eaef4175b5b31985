"""A run that is stopped anywhere and resumed ends as if it had never stopped."""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.kills import CASES
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.flower import InProcessGrid
from fedrobust.runs import checkpoint
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.folder import CHECKPOINT, FolderError, RunFolder, WriteError, timeless
from strategies.checkpointing import Checkpoints, continue_from, remembers
from tests.conftest import Stopped, stop_after

ROOT = Path(__file__).parents[2]
FLOATS = st.floats(width=32)
TENSORS = st.lists(FLOATS, max_size=5).map(torch.tensor)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | TENSORS
KEYS = st.text(max_size=5) | st.integers()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_what_is_saved_is_read_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "checkpoint.npz"
    checkpoint.save(path, tree)
    assert same(tree, checkpoint.load(path))


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {True: 0}, {"a": {1, 2}}])
def test_a_checkpoint_holds_plain_things_only(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"cannot hold|keys are strings"):
        checkpoint.save(tmp_path / "c.npz", value)
    assert not (tmp_path / "c.npz").exists()


def test_a_damaged_checkpoint_is_told_from_a_whole_one(tmp_path):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"model": torch.arange(50.0), "round": 3})
    whole, seen = path.read_bytes(), 0
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
        seen += 1
    body = whole.index(np.arange(50, dtype=np.float32).tobytes())
    path.write_bytes(whole[: body + 9] + b"\xff" + whole[body + 10 :])
    with pytest.raises(CheckpointError, match="CRC"):
        checkpoint.load(path)
    assert seen > 50


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_pickle_in_a_checkpoint_is_never_loaded(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, tree=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tree.npy", b"\x80\x04garbage")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def small_case(small, case):
    changes = {k: v for k, v in CASES[case].items() if k != "byzantine"}
    return from_dict(small | {"rounds": 3, "rule": "median", "attack": "alie"} | changes)


@pytest.fixture
def every_round(monkeypatch):
    """Checkpoint after each round, whatever it costs."""
    monkeypatch.setattr(
        "experiments.simulation.Checkpoints", lambda write, saved: Checkpoints(write, saved, 0.0)
    )


@pytest.mark.parametrize("case", CASES)
def test_resumed_at_any_round_the_numbers_are_the_same(small, tmp_path, every_round, case):
    e = small_case(small, case)
    whole = RunFolder(tmp_path / "whole", e)
    run_one(e, folder=whole)
    expected = timeless(whole.rows())
    assert expected[-1]["round"] == 3
    for round in range(4):
        folder = RunFolder(tmp_path / f"stopped-{round}", e)
        with pytest.raises(Stopped):
            run_one(e, folder=folder, on_row=stop_after(round))
        heard = []
        rows = run_one(e, folder=folder, resume=True, on_row=heard.append)
        assert timeless(rows) == timeless(heard) == timeless(folder.rows()) == expected
        last, first = (checkpoint.load(f.path / CHECKPOINT) for f in (folder, whole))
        assert same(last, first)
    assert json.loads((folder.path / "environment.json").read_text())["resumed"][0]["after"] == 2


def test_the_cases_remember_different_things(small, tmp_path):
    kept = {}
    for case in CASES:
        folder = RunFolder(tmp_path, small_case(small, case))
        run_one(small_case(small, case), folder=folder)
        tree = checkpoint.load(folder.path / CHECKPOINT)
        nodes = any(tree["nodes"].values())
        kept[case] = (tree["strategy"]["memory"] is not None, nodes)
    assert kept == {
        "server velocity": (False, False),
        "worker momentum": (False, True),
        "previous aggregate": (True, False),
        "sums per client": (True, False),
        "norms of all rounds": (True, False),
        "attacker's last model": (False, True),
    }


def test_without_resume_a_run_starts_anew(small, tmp_path, every_round):
    e = small_case(small, "server velocity")
    folder = RunFolder(tmp_path, e)
    with pytest.raises(Stopped):
        run_one(e, folder=folder, on_row=stop_after(2))
    heard = []
    run_one(e, folder=folder, on_row=heard.append)
    assert [row["round"] for row in heard] == list(range(4))
    assert "resumed" not in json.loads((folder.path / "environment.json").read_text())


def test_rows_that_are_missing_or_of_another_run_are_an_error(small, tmp_path, every_round):
    e = small_case(small, "server velocity")
    folder = RunFolder(tmp_path, e)
    with pytest.raises(Stopped):
        run_one(e, folder=folder, on_row=stop_after(2))
    rows = (folder.path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "rounds.jsonl").write_text("".join(rows[:1] + rows[2:]))
    with pytest.raises(CheckpointError, match="not all rows"):
        run_one(e, folder=folder, resume=True)
    tree = checkpoint.load(folder.path / CHECKPOINT)
    checkpoint.save(folder.path / CHECKPOINT, tree | {"run": "another"})
    with pytest.raises(CheckpointError, match="of another run"):
        run_one(e, folder=folder, resume=True)


def test_clients_memory_on_other_machines_is_not_pretended(small):
    plain = from_dict(small)
    heavy = from_dict(small | {"worker_momentum": 0.9})
    assert (remembers(plain), remembers(heavy)) == (False, True)
    saved = {"round": 1, "model": torch.zeros(1), "nodes": None, "strategy": {}}
    grid = InProcessGrid(lambda m, c: None, clients=1, run_config={})
    with pytest.raises(CheckpointError, match="nodes' memory"):
        continue_from(saved, None, grid, heavy)


def test_checkpoints_take_a_bounded_share_of_the_time():
    written = []
    sparse = Checkpoints(written.append, share=1e-9)
    for round in range(5):
        sparse.offer(round, last=round == 4, state=dict)
    assert [tree["round"] for tree in written] == [0, 4]


def limited(small, parents):
    """Run with room for no row, for no checkpoint; exit with 77 if each was told in a sentence."""
    e = from_dict(small | {"rounds": 20})
    for parent, room in parents.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            run_one(e, folder=RunFolder(parent, e))
        except WriteError as error:
            if "make room" not in str(error):
                sys.exit(1)
        else:
            sys.exit(2)
    sys.exit(77)


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(small, tmp_path):
    e = from_dict(small | {"rounds": 20})
    parents = {str(tmp_path / "rows"): 3000, str(tmp_path / "checkpoint"): 6200}
    child = multiprocessing.get_context("spawn").Process(target=limited, args=(small, parents))
    child.start()
    child.join()
    assert child.exitcode == 77
    for parent in parents:
        assert not list(RunFolder(parent, e).path.glob("*.tmp"))
        rows = run_one(e, folder=RunFolder(parent, e), resume=True)
        assert timeless(rows) == timeless(run_one(e))


@pytest.mark.slow
def test_killed_at_random_points(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.kills", "--kills", "3"]
    cases = ["--case", "worker momentum", "--case", "sums per client"]
    done = subprocess.run([*command, *cases], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) == 2
    assert all(entry["kills"] >= 3 and entry["lost"] == 0 for entry in seen)


def test_one_folder_one_process(small, tmp_path):
    e = from_dict(small)
    with (
        RunFolder(tmp_path, e).recording(),
        pytest.raises(FolderError, match="another process"),
        RunFolder(tmp_path, e).recording(resume=True),
    ):
        pass
