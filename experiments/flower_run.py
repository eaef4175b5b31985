"""Run an experiment through ``flwr run``, without the traps of a shared local SuperLink.

The SuperLink is this run's own: own home, own ports, started in a neutral directory, no per-run
installation, no telemetry, and gone with its whole process group at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tomli_w
import torch

import clients
import strategies
from experiments.cluster.connection import ENVIRONMENT as RAY_ADDRESS
from experiments.cluster.connection import LOCAL, address_of
from experiments.flower_processes import (
    POLL,
    FlowerRunError,
    called,
    end,
    flwr,
    free_port,
    refusal,
    wait_for_port,
)
from experiments.hosts import usual_hosts
from fedrobust import plugins
from fedrobust.cores import VARIABLE
from fedrobust.experiment.schema import Experiment
from fedrobust.flower.rows_folder import own_folder
from fedrobust.flower.shared_rows import FOLDER
from fedrobust.plugins import Part
from fedrobust.runs.folder import ROWS, RunFolder
from fedrobust.runs.rows import GrowingRows
from fedrobust.text import FAILED, printable
from fedrobust.version import __version__

Row = dict[str, Any]
ASK = 10.0  # seconds between two questions after a run's state: each is a process of a second
LOG_LIMIT = 60.0
ATTEMPTS = 5  # with pauses of 1, 2, 4, 8 and 16 seconds
SERVER = "strategies.server_app:app"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run_on_flower(
    experiment: Experiment,
    *,
    data_root: str | None = None,
    folder: RunFolder | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    hosts: int = 0,
    resume: bool = False,
    device: str = "cpu",
    parts: Sequence[Part] = (),
    ray_address: str = LOCAL,
    stock: bool = False,
) -> list[Row]:
    """Run one experiment on Flower's simulation engine (Ray) and return its rows.

    Parameters
    ----------
    hosts
        Cohort hosts: nodes of the simulation, one CPU each; 0: ``usual_hosts``.
    resume
        Continue from the folder's checkpoint, if it has one.
    device
        "cuda" shares all GPUs out among the hosts, "cuda:N" one of them.
    parts
        Objects of the user's, for the tables of the hosts.
    ray_address
        Which Ray cluster the engine uses: see ``experiments.cluster.connection.address_of``.
    stock
        Carry messages as Flower does by itself, for comparisons: no shared memory, its intervals.

    Raises
    ------
    FlowerRunError
        If the run ends in any other state than completed; the end of its log is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="fedrobust-flower-") as temporary:
        home = Path(temporary)
        output = folder.path.parent if folder is not None else home / "results"
        target = RunFolder(output.resolve(), experiment)
        hosts = hosts or usual_hosts(experiment, device)
        config = {
            "experiment": experiment.to_toml(),
            "output": str(output.resolve()),
            "data-root": str(Path(data_root).resolve()) if data_root else "",
            "hosts": hosts,
            "resume": resume,
            "device": "" if device == "cpu" else "cuda",  # Ray shows each host its own
            "use": plugins.used(),
            **({"poll": 0.0} if stock else {}),
        }
        app = write_app(home / "app", config)
        if parts:
            plugins.write_parts(home / "parts", parts)
        own, address = str(home / "parts") if parts else "", address_of(ray_address)
        # Workers of a cluster may be on other machines: there is nothing to share with them.
        memory = nullcontext("") if stock or address != LOCAL else own_folder()
        with memory as rows, _superlink(home, own, address, rows) as environment:
            run_id = _submit(app, environment, hosts, device)
            seen = follow(run_id, environment, target, on_row)
    return seen


def write_app(path: Path, config: Mapping[str, Any], *, server: str = SERVER) -> Path:
    """Lay out the thin app: strategies/, clients/, and the run's configuration as defaults."""
    for package in (strategies, clients):
        source = Path(str(package.__file__)).parent
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, path / source.name, ignore=ignore)
    # No dependencies: what runs the app is this very environment.
    document = {
        "project": {"name": "fedrobust", "version": __version__, "dependencies": []},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedrobust",
                    "components": {
                        "serverapp": server,
                        "clientapp": "clients.client_app:app",
                    },
                    "config": dict(config),
                }
            }
        },
    }
    (path / "pyproject.toml").write_text(tomli_w.dumps(document))
    return path


@contextmanager
def _superlink(
    home: Path, parts: str = "", ray_address: str = LOCAL, rows: str = ""
) -> Iterator[dict[str, str]]:
    """Start a SuperLink of this run's own; yield the environment in which ``flwr`` finds it."""
    port = free_port()
    environment = os.environ | QUIET | {"FLWR_HOME": str(home)}
    # The SuperLink starts Flower's other programs by their names.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("OMP_NUM_THREADS", None)
    environment[plugins.VARIABLE] = parts
    # Whatever stood there: a cluster is joined where its address is given, and nowhere else.
    environment[RAY_ADDRESS] = ray_address
    environment[FOLDER] = rows
    environment.setdefault(VARIABLE, "1")  # Ray gives each of its workers one core
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    settings = {"superlink": {"default": "own", "own": connection}}
    (home / "config.toml").write_text(tomli_w.dumps(settings))
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1",
               "--port", str(port), "--log-file", str(home / "superlink.log")]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=home,
        # It writes a log file; a pipe that nobody reads would fill, and stop it.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A group of its own, so that ``end`` reaches all that it starts, and Ctrl+C does not.
        start_new_session=True,
    )
    try:
        wait_for_port(port, process, home)
        yield environment
    finally:
        end(process)


def _submit(app: Path, environment: dict[str, str], hosts: int, device: str) -> str:
    nodes = f"num-supernodes={hosts} client-resources-num-cpus=1"
    if device != "cpu":
        gpus = torch.cuda.device_count() if device == "cuda" else 1
        # Ray takes fractions: several hosts share a GPU.
        nodes += f" client-resources-num-gpus={gpus / hosts:g}"
    answer = flwr(["run", str(app), "--federation-config", nodes], environment)
    if "run-id" not in answer:
        raise FlowerRunError(f"Flower did not accept the run: {refusal(answer)}")
    return str(answer["run-id"])


def follow(
    run_id: str,
    environment: dict[str, str],
    target: RunFolder,
    on_row: Callable[[Row], None],
    *,
    before: Sequence[Row] = (),
) -> list[Row]:
    """Report rows as they are written; return when the run has ended.

    The SuperLink is asked, each time by a new ``flwr`` process, once the last round is written,
    else after 1, 2, 4, ... and at most ``ASK`` seconds.

    Parameters
    ----------
    before
        Rows of an earlier run in the same folder, which stand there again if this one cannot begin.
    """
    rows: list[Row] = []
    written = GrowingRows(target.path / ROWS)
    status, details, wait = "", "", 1.0
    ask = time.monotonic() + wait
    while not status.startswith("finished"):
        time.sleep(POLL)
        if time.monotonic() >= ask or target.ends(written.look()):
            status, details = _status(run_id, environment)
            wait = min(ASK, 2 * wait)
            ask = time.monotonic() + wait
        seen, found = len(rows), written.look()
        rows = found if found != list(before) else rows
        for row in rows[seen:]:
            on_row(row)
    if status != "finished:completed":
        told = _log(run_id, environment)
        where = f"run {run_id} of {own_home(environment)}"
        raise FlowerRunError(f"{told}\n{where} ended as {status!r}: {reason_in(told, details)}")
    return rows


def own_home(environment: Mapping[str, str]) -> str:
    """Name the SuperLink that ``flwr`` speaks to in an environment: its address, and its home."""
    home = Path(environment["FLWR_HOME"])
    settings = tomllib.loads((home / "config.toml").read_text())["superlink"]
    return f"the SuperLink at {settings[settings['default']]['address']} (FLWR_HOME={home})"


def reason_in(log: str, details: str = "") -> str:
    """Return the server app's own sentence in a run's log, the last error in it, or ``details``.

    ``details`` is what the SuperLink says of the end: the only trace of a server app that was
    killed, or that the machine did not let run.
    """
    lines = [line.strip() for line in log.splitlines()]
    for mark in (FAILED, "Error: "):
        for line in reversed(lines):
            if mark in line:
                return line.rpartition(mark)[2] if mark == FAILED else line
    if details not in ("", "N/A"):
        return f"{printable(details)} (killed, out of memory, or held up by the machine)"
    return "no reason is in the log above"


def _status(run_id: str, environment: dict[str, str]) -> tuple[str, str]:
    """Ask for a run's status, and for what the SuperLink adds to it."""
    for attempt in range(ATTEMPTS):
        answer = flwr(["ls", "--run-id", run_id], environment)
        if answer.get("runs"):
            run = answer["runs"][0]
            return str(run["status"]), str(run.get("status-details", ""))
        time.sleep(2**attempt)  # a SuperLink that is busy, or starts again
    raise FlowerRunError(f"the SuperLink does not say how the run is: {refusal(answer)}")


def _log(run_id: str, environment: dict[str, str]) -> str:
    """Return the end of a run's log, or why there is none: the reason may be known without it."""
    try:
        done = called(["log", run_id, "--show"], environment, limit=LOG_LIMIT)
    except FlowerRunError as error:
        return str(error)
    return "\n".join((done.stdout + done.stderr).splitlines()[-40:])
