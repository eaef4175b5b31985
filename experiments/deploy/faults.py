"""Faults on a real federation: break something in the middle of a round, and see what is lost.

``python -m experiments.deploy.faults`` needs network namespaces and mounts (root on Linux). One run
over four nodes; every second round something breaks. One JSON line a round; ``--drill disk`` runs
one of the drills.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from experiments.deploy.federation import Federation, as_json, family, federation, send
from experiments.deploy.rehearse import FILE
from experiments.deployment import run_on_nodes
from experiments.flower_processes import FlowerRunError
from fedrobust.experiment.load import expand, override, read
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder, timeless

Break = Callable[[Federation], None]
OUTPUT, BALLAST = "results", "ballast"


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


def fill_disk(it: Federation) -> None:
    """Leave no room where the run's folder is."""
    with suppress(OSError), (it.home / OUTPUT / BALLAST).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def _mend_node(it: Federation) -> None:
    for number in (1, 2):
        if f"node-{number}" not in it.processes:
            node(it, number)


def _mend_slow(it: Federation) -> None:
    stop(it, 2, signal.SIGCONT)


def _mend_cable(it: Federation) -> None:
    it.cable(2, plugged=True)


def _mend_superlink(it: Federation) -> None:
    it.start_superlink()


def _mend_disk(it: Federation) -> None:
    (it.home / OUTPUT / BALLAST).unlink()


# What breaks in the middle of a round, and what mends it once the round, or the run, has ended.
DRILLS: dict[str, tuple[str, Break, Break]] = {
    "killed": ("node killed in mid-round, restarted after it", kill_node, _mend_node),
    "slow": ("node slower than the deadline", slow_node, _mend_slow),
    "cable": ("cable cut, then healed", cut, _mend_cable),
    "few": ("fewer nodes than the rule needs", kill_two, _mend_node),
    "disk": ("disk full, then room, run resumed", fill_disk, _mend_disk),
    "superlink": ("SuperLink killed, restarted, run resumed", kill_superlink, _mend_superlink),
}
MIDDLE = 3.0  # seconds into a round


def drilled(it: Federation, experiment: Experiment, plan: dict[int, str]) -> list[dict]:
    """Run the drills, resuming the run wherever it ends early; return its rows.

    Parameters
    ----------
    plan
        Round -> drill.
    """
    folder = RunFolder(it.home / OUTPUT, experiment)
    seen: list[dict] = []
    mended: dict[int, str] = {}

    def on_row(row: dict) -> None:
        # A run that continues reports the rows before it again.
        if row in seen:
            return
        seen.append(row)
        now = row["round"]
        say(row, plan.get(now))
        if now in plan:
            mended[now] = plan.pop(now)
            DRILLS[mended[now]][2](it)
        if now + 1 in plan:
            threading.Timer(MIDDLE, DRILLS[plan[now + 1]][1], [it]).start()

    resumes = 0
    while True:
        before = folder.rows() if resumes else []
        try:
            rows = run_on_nodes(
                experiment,
                superlink=it.address,
                output=it.home / OUTPUT,
                certificates=it.home / "ca.crt",
                on_row=on_row,
                resume=resumes > 0,
            )
        # ``flwr`` hangs, or answers without the keys it should have, while its SuperLink is away.
        except (FlowerRunError, KeyError, IndexError) as error:
            last = folder.rows()[-1]["round"] if folder.rows() else -1
            struck = plan.get(last + 1) or mended.get(last)  # a checkpoint comes after its row
            if struck is None or resumes > len(DRILLS):
                raise
            _say_end(DRILLS[struck][0], last + 1, error)
            if plan.pop(last + 1, None):
                DRILLS[struck][2](it)
            it.wait_for_nodes(experiment.clients)
            resumes += 1
            continue
        kept = timeless(rows)[: len(before)] == timeless(before)
        typer.echo(as_json({"rows kept": kept, "rows": len(rows), "resumes": resumes}))
        return rows


def _say_end(drill: str, rows: int, error: Exception) -> None:
    """Print which drill ended the run, after how many rows, with what error."""
    reason = str(error).splitlines()
    told = [line for line in reason if "Error" in line] or reason[:1]
    typer.echo(as_json({"drill": drill, "rows": rows, "run ended": told[-1][:300]}))


def say(row: dict, drill: str | None) -> None:
    """Print what a round was like."""
    line = {
        "round": row["round"],
        "drill": DRILLS[drill][0] if drill else "none",
        "replies": row.get("replies"),
        "rejected": [f"{e['client']}: {e['reason'][:110]}" for e in row.get("rejected", [])],
        "kept": row.get("kept", ""),
        "accuracy": round(row["accuracy"], 4),
        "seconds": round(row["seconds"]),
    }
    typer.echo(as_json(line))


@contextmanager
def volume(path: Path, size: str) -> Iterator[None]:
    """Mount a disk of its own at a folder, for as long as the block lasts."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        # Lazily: processes that are about to end may hold files there.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def main(deadline: float = 90.0, drill: list[str] | None = None) -> None:
    """Run drills, all of them if none is named, on one federation of four honest nodes."""
    plan = {2 * (i + 1): name for i, name in enumerate(drill or DRILLS)}
    changes = {"rounds": max(plan), "server.deadline": deadline, "attack": "none", "byzantine": 1}
    (experiment,) = expand(override(read(FILE), changes))
    with (
        tempfile.TemporaryDirectory(prefix="fedrobust-faults-") as temporary,
        federation(Path(temporary), nodes=4) as it,
        volume(it.home / OUTPUT, "32m"),
    ):
        for number in range(experiment.clients):
            it.register(number)
            node(it, number)
        it.wait_for_nodes(experiment.clients)
        drilled(it, experiment, plan)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
