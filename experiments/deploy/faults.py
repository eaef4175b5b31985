"""Faults on a real federation: break something in the middle of a round, and see what is lost.

``python -m experiments.deploy.faults`` needs network namespaces (root on Linux) to cut cables. Each
drill is one run of its own over the same four nodes; a JSON line says what happened.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
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


def restart_node(it: Federation) -> None:
    """Kill one node and start it again at once."""
    it.kill("node-1")
    node(it, 1)


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


# What breaks after round 1 has ended, and what mends it after the next round has.
DRILLS: dict[str, tuple[Break, Break]] = {
    "node killed in mid-round": (kill_node, _mend_node),
    "node killed and restarted at once": (restart_node, nothing),
    "node slower than the deadline": (slow_node, _mend_slow),
    "cable cut, then healed": (cut, _mend_cable),
    "fewer nodes than the rule needs": (kill_two, _mend_node),
    "SuperLink killed, restarted, run resumed": (kill_superlink, nothing),
}


def drill(it: Federation, experiment: Experiment, name: str, number: int) -> dict[str, object]:
    """Run one drill and say what happened."""
    breaks, mends = DRILLS[name]
    output = it.home / f"drill-{number}"
    began = time.monotonic()

    def on_row(row: dict) -> None:
        if row["round"] == 1:
            threading.Timer(3.0, breaks, [it]).start()  # in the middle of round 2
        if row["round"] == 2:
            mends(it)

    def run(resume: bool) -> list[dict]:
        return run_on_nodes(
            experiment,
            superlink=it.address,
            output=output,
            certificates=it.home / "ca.crt",
            on_row=on_row if not resume else lambda row: None,
            resume=resume,
        )

    told = ""
    try:
        rows = run(resume=False)
    except FlowerRunError as error:
        told = str(error).splitlines()[0][:160]
        before = len(RunFolder(output, experiment).rows())
        if "superlink" not in it.processes:
            it.start_superlink()
        it.wait_for_nodes(experiment.clients)
        rows = run(resume=True)
        told = f"{before} rows were on disk; resumed"
    it.wait_for_nodes(experiment.clients)
    return {
        "drill": name,
        "replies": [row.get("replies") for row in rows[1:]],
        "rejected": [[e["reason"][:90] for e in row.get("rejected", [])] for row in rows[1:]],
        "kept": [row["kept"] for row in rows if "kept" in row],
        "rounds": [row["round"] for row in rows],
        "seconds": [round(row["seconds"]) for row in rows[1:]],
        "told": told,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def main(deadline: float = 60.0, rounds: int = 3, only: list[str] | None = None) -> None:
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
        for number, name in enumerate(only or DRILLS):
            typer.echo(as_json(drill(it, experiment, name, number)))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
