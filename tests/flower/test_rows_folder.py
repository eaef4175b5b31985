"""Folders in memory of runs that live, and of runs that were killed."""

import os
import subprocess
import sys

import pytest

from fedrobust.flower import rows_folder
from fedrobust.flower.rows_folder import PREFIX, hold, own_folder, sweep
from fedrobust.flower.shared_rows import RowsFile

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no shared rows here")
LAUNCHER = """
import sys
from pathlib import Path
from fedrobust.flower import rows_folder
rows_folder.MEMORY = Path(sys.argv[1])
with rows_folder.own_folder() as folder:
    (Path(folder) / "rows").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_folder, "MEMORY", tmp_path)
    return tmp_path


def left(memory, name="left", mode=0o700):
    """Make a folder as a killed run leaves it."""
    folder = memory / f"{PREFIX}{name}"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "rows").write_bytes(b"0")
    return folder


def test_a_runs_folder_is_private_and_goes_with_the_run(memory):
    with own_folder() as path:
        assert os.stat(path).st_mode & 0o777 == 0o700
    assert not list(memory.iterdir())


def test_the_folder_of_a_killed_run_goes_with_the_next_one(memory):
    command = [sys.executable, "-c", LAUNCHER, str(memory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as launcher:
        folder = launcher.stdout.readline().strip()
        assert sweep() == [], "it lives"
        launcher.kill()
    assert os.path.exists(f"{folder}/rows")
    with own_folder() as path:
        assert [str(one) for one in memory.iterdir()] == [path]


def test_a_folder_stays_while_the_server_of_its_run_needs_it(memory):
    folder = left(memory)
    lock = hold(folder)
    assert sweep() == []
    os.close(lock)
    RowsFile(folder)
    assert sweep() == [], "the server of a run whose launcher was killed holds it"


def test_only_own_folders_are_swept(memory):
    open_to_all, other, file = left(memory, "open", 0o755), memory / "else", memory / f"{PREFIX}f"
    other.mkdir(mode=0o700)
    file.write_bytes(b"0")
    (memory / f"{PREFIX}link").symlink_to(other)
    before = sorted(memory.iterdir())
    left(memory)
    assert sweep() == [f"{PREFIX}left"]
    assert sorted(memory.iterdir()) == before and (open_to_all / "rows").exists()


def test_a_folder_of_another_user_stays(memory, monkeypatch):
    left(memory)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert sweep() == []


def test_a_folder_that_was_swept_before_it_was_held_is_made_again(memory, monkeypatch):
    made = rows_folder.tempfile.mkdtemp
    calls = []

    def swept_at_once(**where):
        folder = made(**where)
        if not calls:
            calls.extend(sweep())
        return folder

    monkeypatch.setattr(rows_folder.tempfile, "mkdtemp", swept_at_once)
    with own_folder() as path:
        assert len(calls) == 1 and os.path.isdir(path)
