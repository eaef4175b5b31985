"""Faults on a real federation: break something in the middle of a round, and see what is lost.

``python -m experiments.deploy.faults`` needs network namespaces (root on Linux) to cut cables. One
run of ten rounds over four nodes; every second round something breaks. One JSON line a round.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import typer

from experiments.deploy.federation import Federation, as_json, family, federation, send
from experiments.deploy.rehearse import FILE
from experiments.deployment import run_on_nodes
from experiments.flower_run import FlowerRunError
from fedrobust.config import Experiment, expand, override, read
from fedrobust.rundir import RunFolder

Break = Callable[[Federation], None]


def node(it: Federation, number: int) -> None:
    """Start an honest node, under its registered key."""
    it.start_node(number, {"partition-id": number, "role": "honest"})


def kill_node(it: Federation) -> None:
    """SIGKILL one node and all its processes."""
    it.kill("node-1")


def stop(it: Federation, number: int, word: signal.Signals) -> None:
    """Stop a node's processes, or let them go on."""
    for child in family(it.processes[f"node-{number}"].pid):
        send(child, word)


def slow_node(it: Federation) -> None:
    """Hold one node still: longer than the deadline."""
    stop(it, 2, signal.SIGSTOP)


def cut(it: Federation) -> None:
    """Cut one node's cable."""
    it.cable(2, plugged=False)


def kill_two(it: Federation) -> None:
    """Leave fewer nodes than the rule needs."""
    it.kill("node-1")
    it.kill("node-2")


def kill_superlink(it: Federation) -> None:
    """SIGKILL the SuperLink with the server app that it started."""
    it.kill("superlink")


def _mend_node(it: Federation) -> None:
    for number in (1, 2):
        if f"node-{number}" not in it.processes:
            node(it, number)


def _mend_slow(it: Federation) -> None:
    stop(it, 2, signal.SIGCONT)


def _mend_cable(it: Federation) -> None:
    it.cable(2, plugged=True)


def nothing(it: Federation) -> None:
    """Mend nothing."""


# Round -> its name, what breaks in the middle of it, and what mends it once it has ended.
DRILLS: dict[int, tuple[str, Break, Break]] = {
    2: ("node killed in mid-round, restarted after it", kill_node, _mend_node),
    4: ("node slower than the deadline", slow_node, _mend_slow),
    6: ("cable cut, then healed", cut, _mend_cable),
    8: ("fewer nodes than the rule needs", kill_two, _mend_node),
    10: ("SuperLink killed, restarted, run resumed", kill_superlink, nothing),
}
MIDDLE = 3.0  # seconds into a round


def drilled(it: Federation, experiment: Experiment) -> list[dict]:
    """Run the drills; return the rows of the run that was resumed at the end."""
    output = it.home / "results"

    def on_row(row: dict) -> None:
        now = row["round"]
        if now in DRILLS:
            DRILLS[now][2](it)
        if now + 1 in DRILLS:
            threading.Timer(MIDDLE, DRILLS[now + 1][1], [it]).start()
        say(now, row)

    def run(report: Callable[[dict], None], *, resume: bool) -> list[dict]:
        return run_on_nodes(
            experiment,
            superlink=it.address,
            output=output,
            certificates=it.home / "ca.crt",
            on_row=report,
            resume=resume,
        )

    try:
        return run(on_row, resume=False)
    except (FlowerRunError, subprocess.TimeoutExpired, KeyError, IndexError) as error:
        before = RunFolder(output, experiment).rows()
        typer.echo(as_json({"run ended": str(error)[:120], "rows on disk": len(before)}))
    if "superlink" not in it.processes:
        it.start_superlink()
    it.wait_for_nodes(experiment.clients)
    rows = run(lambda row: None, resume=True)
    for row in rows[len(before) :]:
        say(row["round"], row)
    typer.echo(as_json({"rows kept": rows[: len(before)] == before, "rows": len(rows)}))
    return rows


def say(now: int, row: dict) -> None:
    """Print what a round was like."""
    line = {
        "round": now,
        "drill": DRILLS[now][0] if now in DRILLS else "none",
        "replies": row.get("replies"),
        "rejected": [f"{e['client']}: {e['reason'][:110]}" for e in row.get("rejected", [])],
        "kept": row.get("kept", ""),
        "accuracy": round(row["accuracy"], 4),
        "seconds": round(row["seconds"]),
    }
    typer.echo(as_json(line))


def main(deadline: float = 90.0, rounds: int = 10) -> None:
    """Run every drill on one federation of four honest nodes."""
    changes = {"rounds": rounds, "server.deadline": deadline, "attack": "none", "byzantine": 1}
    (experiment,) = expand(override(read(FILE), changes))
    with (
        tempfile.TemporaryDirectory(prefix="fedrobust-faults-") as temporary,
        federation(Path(temporary), nodes=4) as it,
    ):
        for number in range(experiment.clients):
            it.register(number)
            node(it, number)
        it.wait_for_nodes(experiment.clients)
        drilled(it, experiment)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
