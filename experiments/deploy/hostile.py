"""The drill: a stranger, a forger, a poisoner, a flooder and a silent node among eight, at work.

``python -m experiments.deploy.hostile`` runs 20 rounds on a real SuperLink behind the gate with TLS
and registered keys, prints JSON lines, and ends with exit code 1 if anything is not as it should
be. ``--no-gate`` shows the same attacks on Flower's own SuperLink: there the stranger's doors are
open, and what forger and flooder push is taken.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from experiments.deploy import behaviours
from experiments.deploy.behaviours import stranger
from experiments.deploy.federation import Federation, as_json, federation
from experiments.deploy.raw_nodes import Behaviour, RawNode, honest
from experiments.deployment import run_on_nodes
from experiments.flower_processes import FlowerRunError
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment

EXPERIMENT: dict[str, Any] = {
    "data": "digits",
    "model": "linear",
    "clients": 8,
    "byzantine": 1,
    "seed": 1,
    "rule": "median",
    "attack": "none",
    "training": {"batch_size": 16},
    "server": {"lr": 0.5, "momentum": 0.0, "evaluate_every": 1},
}
HONEST = 4  # then a forger, a poisoner, a flooder, a silent node


def main(rounds: int = 20, gate: bool = True, deadline: float = 40.0, seeds: int = 3) -> None:
    """Run the drill and say what came of it."""
    raise typer.Exit(0 if held(rounds, gate=gate, deadline=deadline, seeds=seeds) else 1)


def held(rounds: int, *, gate: bool = True, deadline: float = 40.0, seeds: int = 3) -> bool:
    """Run the drill, print what came of it, and return whether all is as it should be."""
    server = EXPERIMENT["server"] | {"deadline": deadline}
    e = from_dict(EXPERIMENT | {"rounds": rounds, "server": server})
    spread = [run_one(from_dict(e.to_dict() | {"seed": s}))[-1]["accuracy"]
              for s in range(1, seeds + 1)]  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="fedrobust-hostile-") as temporary,
        federation(Path(temporary), nodes=0, namespaces=False, gate=gate) as it,
        at_work(it, eight()) as nodes,
    ):
        found = drill(it, e, nodes)
        found["state_mib"] = round(stored(it) / 2**20, 1)
    low, high = min(spread), max(spread)
    found |= {"gate": gate, "without_them": [round(a, 4) for a in spread]}
    # The seeds' own spread below the lowest of them, and one point more.
    found["good"] = good(found, nodes, low - (high - low) - 0.01)
    typer.echo(as_json(found))
    for node in nodes:
        typer.echo(as_json({"node": node.name, "tried": dict(sorted(node.tried.items()))}))
    return bool(found["good"])


def eight() -> list[Behaviour]:
    """Return what the eight nodes do; the forger knows two honest ones' ids."""
    forger = behaviours.forger(lambda node: node.team[:2])
    hostile = [forger, behaviours.poisoner, behaviours.flooder, behaviours.silent]
    return [*[honest] * HONEST, *hostile]


@contextmanager
def at_work(it: Federation, kinds: list[Behaviour]) -> Iterator[list[RawNode]]:
    """Register and start nodes, each at an address of its own; stop them at the end."""
    nodes: list[RawNode] = []
    it.register_all(len(kinds))
    for number, behaviour in enumerate(kinds):
        nodes.append(RawNode(it, number, behaviour, source=f"127.0.1.{number + 1}"))
    for node in nodes:
        node.team = nodes
        node.start()
    try:
        it.wait_for_nodes(len(nodes))
        yield nodes
    finally:
        for node in nodes:
            node.stop()


def drill(it: Federation, e: Experiment, nodes: list[RawNode]) -> dict[str, Any]:
    """Run the experiment while a stranger asks for everything in each round."""
    doors: dict[str, set[int]] = {}
    largest = 0
    began = time.monotonic()

    def on_row(row: dict[str, Any]) -> None:
        nonlocal largest
        largest = max(largest, stored(it))
        for path, status in stranger(it).items():
            doors.setdefault(path, set()).add(status)

    try:
        rows = run_on_nodes(e, superlink=it.address, output=it.home / "results",
                            certificates=it.home / "ca.crt", on_row=on_row)  # fmt: skip
        ended = "completed"
    except FlowerRunError as error:
        rows, ended = [], str(error).splitlines()[-1]
    seconds = [row["seconds"] for row in rows[1:]]
    last = rows[-1] if rows else {}
    return {
        "ended": ended,
        "rounds": len(seconds),
        "accuracy": last.get("accuracy"),
        "largest_state_mib": round(largest / 2**20, 1),
        "replies": [row["replies"] for row in rows[1:]],
        "seconds": round(time.monotonic() - began, 1),
        "seconds_by_round": [round(s, 1) for s in seconds],
        "quarantine": last.get("quarantine", []),
        "stranger": {path: sorted(found) for path, found in sorted(doors.items())},
    }


def good(found: dict[str, Any], nodes: list[RawNode], least: float) -> bool:
    """Whether the run was as it is without them, and nothing that they tried was let in."""
    doors = {path: set(seen) for path, seen in found["stranger"].items()}
    closed = doors.pop("/health", {200}) == {200} and all(s == {403} for s in doors.values())
    forger, flooder = nodes[HONEST].tried, nodes[HONEST + 2].tried
    refused = forger["PushMessages 403"] == forger["forged"] > 0
    refused &= not forger["objects of another's"] and flooder["PushMessages 409"] > 0
    ended = found["ended"] == "completed" and found["accuracy"] >= least
    return bool(closed and refused and ended and found["largest_state_mib"] < 64)


def stored(it: Federation) -> int:
    """Return the bytes of the SuperLink's database."""
    return sum(path.stat().st_size for path in it.home.glob("state.db*"))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
