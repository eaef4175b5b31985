"""A run's folder: nothing is lost to a run that cannot begin, every damage has its sentence."""

import json
import os
import shutil
import subprocess

import pytest

from experiments import flower_processes, flower_run
from experiments.flower_processes import FlowerRunError, refusal
from experiments.flower_run import follow, reason_in
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.runs import rows as rows_module
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.environment import environment
from fedrobust.runs.folder import (
    CHECKPOINT,
    PREVIOUS,
    FolderError,
    RunFolder,
    WriteError,
    read_rows,
)
from fedrobust.runs.rows import GrowingRows
from fedrobust.text import FAILED
from strategies.handshake import ProtocolError


@pytest.fixture
def done(small, tmp_path):
    """A finished run in its folder."""
    e = from_dict(small | {"rounds": 2})
    folder = RunFolder(tmp_path, e)
    run_one(e, folder=folder)
    return folder, e


def files(folder):
    return {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()}


def test_a_run_that_cannot_begin_erases_nothing(done):
    """``deploy`` while the nodes were away erased a finished run before the roll call failed."""
    folder, _ = done
    before = files(folder)
    assert folder.finished and CHECKPOINT in before
    with pytest.raises(ProtocolError), RunFolder(folder.path.parent, done[1]).recording():
        assert folder.rows() == []  # nobody takes the old rows for this run's
        raise ProtocolError("no node answered the roll call")
    assert files(folder) == before and folder.finished


def test_a_run_that_begins_moves_the_old_files_aside(done):
    folder, e = done
    rows, aside = folder.rows(), folder.path / PREVIOUS
    for turn in range(2):
        with pytest.raises(KeyboardInterrupt), RunFolder(folder.path.parent, e).recording() as now:
            now.append({"round": 0, "turn": turn})
            raise KeyboardInterrupt
        assert folder.rows() == [{"round": 0, "turn": turn}]
        assert not (folder.path / CHECKPOINT).exists()
        assert read_rows(aside / "rounds.jsonl.old") == (
            rows if turn == 0 else [{"round": 0, "turn": 0}]
        )
    assert not list(folder.path.rglob("rounds.jsonl"))[1:]  # a search finds this run alone


def test_what_a_kill_left_aside_is_not_displaced_by_nothing(done):
    folder, e = done
    rows = folder.rows()
    killed = RunFolder(folder.path.parent, e)
    killed._set_aside()
    killed._start(None, {})  # here the power went off
    with pytest.raises(ProtocolError), RunFolder(folder.path.parent, e).recording():
        raise ProtocolError("again")
    assert read_rows(folder.path / PREVIOUS / "rounds.jsonl.old") == rows


DAMAGE = {
    "rows are bytes": ("rounds.jsonl", b"\xff\xfe\x00"),
    "a row is a number": ("rounds.jsonl", b"7\n"),
    "a row is a list": ("rounds.jsonl", b"[1]\n"),
    "a row has no round": ("rounds.jsonl", b"{}\n"),
    "no rows": ("rounds.jsonl", None),
    "rows are a folder": ("rounds.jsonl", "folder"),
    "environment is bytes": ("environment.json", b"\xff"),
    "environment is cut": ("environment.json", b'{"a": '),
    "environment is a number": ("environment.json", b"7"),
    "environment is a folder": ("environment.json", "folder"),
    "checkpoint is cut": (CHECKPOINT, b"PK\x03\x04"),
    "checkpoint is a folder": (CHECKPOINT, "folder"),
    "config is a folder": ("config.toml", "folder"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_every_damaged_or_missing_file_gets_a_sentence(done, case):
    """Tracebacks: UnicodeDecodeError, JSONDecodeError, IsADirectoryError, TypeError."""
    folder, e = done
    name, content = DAMAGE[case]
    path = folder.path / name
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert isinstance(folder.rows(), list) and isinstance(folder.finished, bool)
    for resume in (True, False):
        try:
            run_one(e, folder=RunFolder(folder.path.parent, e), resume=resume)
        except (FolderError, CheckpointError) as error:
            assert str(folder.path) in str(error) and "\n" not in str(error)
    shutil.rmtree(folder.path)
    run_one(e, folder=RunFolder(folder.path.parent, e))


def test_a_missing_environment_is_no_reason_to_stop(done):
    folder, e = done
    (folder.path / "environment.json").unlink()
    run_one(e, folder=RunFolder(folder.path.parent, e), resume=True)
    told = json.loads((folder.path / "environment.json").read_text())
    assert [entry["after"] for entry in told["resumed"]] == [2]


def test_a_disk_that_may_not_be_written_to_gets_a_sentence(small, tmp_path, monkeypatch):
    e = from_dict(small)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(WriteError, match="cannot write into"),
        RunFolder(tmp_path / "file", e).recording(),
    ):
        pass
    for number, words in ((28, "No space left"), (30, "Read-only file system")):

        def refuse(self, *args, number=number, **more):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fedrobust.runs.folder.Path.write_text", refuse)
        with pytest.raises(WriteError, match=words), RunFolder(tmp_path, e).recording():
            pass


class Answers:
    """What the ``flwr`` command answers, one call after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, arguments, environment):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


LOG = f"""INFO :      fedrobust: x
ERROR :     {FAILED}ProtocolError: 4 clients are needed, 1 nodes are connected
ERROR :     ServerApp thread raised an exception: 4 clients
Traceback (most recent call last):
strategies.handshake.ProtocolError: 4 clients are needed
INFO :      exit"""


def test_the_last_sentence_is_the_reason(done, monkeypatch, tmp_path):
    folder, _ = done
    settings = '[superlink]\ndefault = "own"\n[superlink.own]\naddress = "127.0.0.1:1"\n'
    (tmp_path / "config.toml").write_text(settings)
    environment = {"FLWR_HOME": str(tmp_path)}
    monkeypatch.setattr(flower_run, "POLL", 0.0)
    monkeypatch.setattr(flower_run.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(flower_run, "_log", lambda run_id, environment: LOG)
    failed = {"runs": [{"status": "finished:failed"}]}
    monkeypatch.setattr(flower_run, "flwr", Answers({"success": False}, failed))
    seen = []
    with pytest.raises(FlowerRunError) as told:
        follow("1", environment, folder, seen.append, before=folder.rows())
    assert str(told.value).splitlines()[-1] == (
        f"run 1 of the SuperLink at 127.0.0.1:1 (FLWR_HOME={tmp_path}) ended as 'finished:failed': "
        "ProtocolError: 4 clients are needed, 1 nodes are connected"
    )
    assert not seen  # the rows of the run before are not this one's
    busy = {"success": False, "error-message": "database is\nlocked"}
    monkeypatch.setattr(flower_run, "flwr", Answers(busy))
    with pytest.raises(FlowerRunError, match="does not say how the run is: database is locked"):
        follow("1", environment, folder, seen.append)


def test_a_slow_flwr_is_named_and_hides_no_reason(done, monkeypatch, tmp_path):
    """``flwr log`` of a machine that is too busy told a timeout, in the place of the reason."""
    folder, _ = done
    (tmp_path / "flwr").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "flwr").chmod(0o700)
    settings = '[superlink]\ndefault = "own"\n[superlink.own]\naddress = "127.0.0.1:1"\n'
    (tmp_path / "config.toml").write_text(settings)
    environment = {"FLWR_HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    monkeypatch.setattr(flower_processes, "ANSWER_LIMIT", 0.2)
    monkeypatch.setattr(flower_run, "LOG_LIMIT", 0.2)
    monkeypatch.setattr(flower_run, "POLL", 0.0)
    with pytest.raises(FlowerRunError, match=r"flwr ls gave no answer in 0\.2 s"):
        follow("1", environment, folder, lambda row: None)
    ended = {"runs": [{"status": "finished:failed", "status-details": "No heartbeat received"}]}
    monkeypatch.setattr(flower_run, "flwr", Answers(ended))
    with pytest.raises(FlowerRunError) as told:
        follow("1", environment, folder, lambda row: None)
    assert str(told.value).startswith("flwr log gave no answer in 0.2 s\n")
    assert "ended as 'finished:failed': No heartbeat received" in str(told.value)


@pytest.mark.parametrize("failure", [OSError("no git"), subprocess.TimeoutExpired("git", 5)])
def test_a_git_that_fails_or_hangs_ends_no_run(monkeypatch, failure):
    def git(*command, **settings):
        raise failure

    monkeypatch.setattr(subprocess, "run", git)
    assert environment()["commit"] is None


def test_reasons_and_refusals_are_one_line():
    assert reason_in("a\nValueError: b\nc") == "ValueError: b"
    assert reason_in("") == reason_in("", "N/A") == "no reason is in the log above"
    heartbeat = "No heartbeat received from the task"
    assert reason_in("", heartbeat).startswith(heartbeat)
    assert reason_in("ValueError: x", heartbeat) == "ValueError: x", "the log knows more"
    assert refusal({"message": "no\x1b[31m"}) == "no?[31m"
    assert refusal({"success": False}) == '{"success": false}'


def test_certificates_hold_addresses_of_both_kinds(tmp_path):
    script = flower_run.Path(__file__).parents[2] / "experiments/deploy/make_certificates.sh"
    names = ["fl.example.org", "192.0.2.1", "2001:db8::1", "::1", "fe80::1%eth0"]
    made = subprocess.run(["sh", str(script), str(tmp_path), *names[:4]], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert "DNS:fl.example.org,IP:192.0.2.1,IP:2001:db8::1,IP:::1" in made.stdout
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(tmp_path / "server.crt"), "-noout", "-text"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "IP Address:2001:DB8:0:0:0:0:0:1" in shown and "DNS:fl.example.org" in shown
    wrong = subprocess.run(["sh", str(script), str(tmp_path), "a,b"], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert wrong.returncode == 2 and "no host name or address" in wrong.stderr


def test_growing_rows_are_parsed_once_and_replaced_files_are_read_anew(tmp_path, monkeypatch):
    file, parsed = tmp_path / "rounds.jsonl", []
    growing = GrowingRows(file)
    assert growing.look() == []
    monkeypatch.setattr(rows_module, "printables", lambda row: parsed.append(row) or row)
    with file.open("w") as out:
        for number in range(50):
            out.write(json.dumps({"round": number}) + "\n")
            out.flush()
            assert len(growing.look()) == number + 1
        out.write('{"round": 5')
        out.flush()
        assert len(growing.look()) == 50, "a line that is not whole waits"
        out.write("0}\n")
        out.flush()
    assert growing.look()[-1] == {"round": 50} and len(parsed) == 51
    other = tmp_path / "other"
    other.write_text('{"round": 0}\n')
    os.replace(other, file)
    assert growing.look() == [{"round": 0}] == read_rows(file)
    other.write_text('{"round": 1}\n{"damaged\n{"round": 2}\n')
    os.replace(other, file)
    assert growing.look() == read_rows(file) == [{"round": 1}]


def test_a_superlink_may_take_longer_on_a_machine_with_more_work_than_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, factor in ((0.0, 1), (4.0, 1), (24.0, 6)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert flower_processes.start_limit() == factor * flower_processes.START_LIMIT
