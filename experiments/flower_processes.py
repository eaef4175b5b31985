"""Flower's processes and command from outside: call, wait, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrobust.text import printable

POLL = 0.5
START_LIMIT = 60.0
ANSWER_LIMIT = 120.0  # seconds for one call of ``flwr``


class FlowerRunError(RuntimeError):
    """A run that Flower did not complete."""


def flwr(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Call the ``flwr`` command and return the JSON that it answers.

    Raises
    ------
    FlowerRunError
        If it answers anything else, or not within ``ANSWER_LIMIT``.
    """
    done = called([*arguments, "--format", "json"], environment, limit=ANSWER_LIMIT)
    # Flower may print lines of its own before the answer.
    start = done.stdout.find("{")
    try:
        return json.loads(done.stdout[start:])
    except json.JSONDecodeError as error:
        raise FlowerRunError(f"flwr {arguments[0]}: {done.stdout}{done.stderr}") from error


def called(
    arguments: list[str], environment: dict[str, str], *, limit: float
) -> subprocess.CompletedProcess[str]:
    """Call the ``flwr`` command and return what it printed.

    Raises
    ------
    FlowerRunError
        If it has not ended after ``limit`` seconds: its SuperLink is away, or too busy.
    """
    try:
        return subprocess.run(
            ["flwr", *arguments],
            env=environment,
            cwd=environment["FLWR_HOME"],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise FlowerRunError(f"flwr {arguments[0]} gave no answer in {limit:g} s") from error


def refusal(answer: Mapping[str, Any]) -> str:
    """Return the sentence in an answer of ``flwr`` that is not what was asked for."""
    for key in ("error-message", "error", "message", "detail"):
        if isinstance(answer.get(key), str) and answer[key].strip():
            return printable(answer[key])
    return printable(json.dumps(answer))


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        # The system chooses. Free is not ours: another process may take it before we do.
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_limit() -> float:
    """Return the seconds that a SuperLink may take: more where work waits for the cores."""
    return START_LIMIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for_port(port: int, process: subprocess.Popen, home: Path) -> None:
    """Wait until a SuperLink takes connections."""
    end = time.monotonic() + start_limit()
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(POLL)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL)
    log = home / "superlink.log"
    raise FlowerRunError(f"no SuperLink: {log.read_text()[-2000:] if log.is_file() else ''}")


def end(process: subprocess.Popen) -> None:
    """End the SuperLink and everything that it started."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        try:
            # The whole group, which was started as a session: the processes of Ray outlive their
            # parent.
            os.killpg(process.pid, word)
            process.wait(timeout=10)  # then it is killed
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
