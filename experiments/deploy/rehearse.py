"""The rehearsal: a SuperLink, four nodes, TLS, registered keys, one attacker; strangers refused.

``make rehearse``, or ``python -m experiments.deploy.rehearse``. Ends with exit code 1 if anything
is not as it should be. Then Aspis with a model and data of one's own, 1.1 million parameters, on
five nodes (``--no-aspis`` leaves that out), and eight nodes, half of them hostile, with a stranger
at the door (``experiments.deploy.hostile``; ``--hostile 0``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import typer

from experiments.deploy.federation import STARTED, Federation, as_json, federation
from experiments.deploy.hostile import held
from experiments.deployment import run_on_nodes
from experiments.simulation import run_one
from fedrobust import plugins
from fedrobust.attacks import threat_model
from fedrobust.experiment.load import expand, override, read
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import timeless

FILE = Path(__file__).with_name("federation.toml")
REFUSED = {  # what each stranger must have said, beside Flower's exit code 305 (no connection)
    "stranger": "Failed to activate SuperNode",
    "stranger-plain": "Server disconnected without sending a response",
}
ASPIS = Path(__file__).with_name("own_task.toml")
TASK = Path(__file__).with_name("own_task.py")
KNOWN_IN_SIMULATION = ("byzantine", "precision", "recall", "wrong_files")
NO_CONNECTION = "Exit Code: 305"


def main(rounds: int = 5, loopback: bool = False, hostile: int = 20, aspis: bool = True) -> None:
    """Rehearse a deployment on this machine and clean up; then Aspis, and hostile nodes.

    ``rounds=0`` leaves the first part out.
    """
    good = True
    if rounds:
        (experiment,) = expand(override(read(FILE), {"rounds": rounds}))
        good &= _in_a_federation(experiment, rehearse, loopback=loopback)
    if aspis:
        plugins.use(TASK)
        (experiment,) = expand(read(ASPIS))
        good &= _in_a_federation(experiment, rehearse_aspis, loopback=loopback)
    if hostile:
        good &= held(hostile)
    raise typer.Exit(0 if good else 1)


def _in_a_federation(
    experiment: Experiment, part: Callable[[Federation, Experiment], bool], *, loopback: bool
) -> bool:
    """Lay a network for an experiment's nodes, play a part on it, and clean up."""
    with tempfile.TemporaryDirectory(prefix="fedrobust-rehearsal-") as temporary:
        home = Path(temporary)
        nodes = experiment.clients
        with federation(home, nodes=nodes, namespaces=False if loopback else None) as it:
            say("network", kind="namespaces" if it.bridge else "loopback", superlink=it.address)
            good = part(it, experiment)
    say("clean", left=str(home.exists()))
    return good


def rehearse_aspis(it: Federation, experiment: Experiment) -> bool:
    """Train somebody's own model on five workers, one of them Byzantine, from key to result.

    The rows must be those of the simulation, without what only a simulation can know; the attacker
    is flagged because of what it sent: the server's file says nothing that the nodes read.
    """
    members = start_nodes(it, experiment, use=plugins.used())
    expected = run_one(experiment)  # while the nodes start
    it.wait_for_nodes(experiment.clients)
    rows = told_run(it, experiment)
    same = [what_was_seen(row) for row in rows] == [what_was_seen(row) for row in expected]
    claimed = sorted({*KNOWN_IN_SIMULATION} & {key for row in rows for key in row})
    found = rows[-1].get("flagged") == list(members)
    say("aspis", same_as_simulated=same, derived_from_the_file=claimed, attacker_flagged=found)
    return same and not claimed and found


def start_nodes(it: Federation, experiment: Experiment, **config: str) -> tuple[int, ...]:
    """Register and start a node for each client, with its own role; return the Byzantine ones."""
    members = threat_model.members(experiment)
    it.register_all(experiment.clients)
    for number in range(experiment.clients):
        role = "malicious" if number in members else "honest"
        it.start_node(number, {"partition-id": number, "role": role, **config})
        say("node started", client=number, role=role, registered=f"client-{number}")
    return members


def told_run(it: Federation, experiment: Experiment) -> list[dict]:
    """Run the experiment on the nodes, print each row and the time, return the rows."""
    began = time.monotonic()
    rows = run_on_nodes(
        experiment,
        superlink=it.address,
        output=it.home / "results",
        certificates=it.home / "ca.crt",
        on_row=lambda row: say("round", **row),
    )
    say("run", rounds=len(rows) - 1, seconds=round(time.monotonic() - began, 1))
    return rows


def what_was_seen(row: dict) -> dict:
    """Return what a server sees of a round under redundancy, on nodes or in simulation."""
    hidden = (*KNOWN_IN_SIMULATION, "seconds", "seconds_commit", "seconds_detect", "rejected")
    return {key: value for key, value in row.items() if key not in hidden}


def rehearse(it: Federation, experiment: Experiment) -> bool:
    """Start the nodes and the strangers, run the experiment, compare it with the simulation."""
    start_nodes(it, experiment)
    strangers = [stranger(it, tls=True), stranger(it, tls=False)]
    expected = run_one(experiment)  # while the nodes start
    say("simulation", accuracy=[round(row["accuracy"], 4) for row in expected])
    it.wait_for_nodes(experiment.clients)
    say("register", nodes=[(entry["node-id"], entry["status"]) for entry in it.nodes()])
    rows = told_run(it, experiment)
    same = observed(rows) == observed(expected)
    say("same rows as in simulation", answer=same)
    refused = [was_refused(it, name, experiment.clients) for name in strangers]
    return same and all(refused)


def stranger(it: Federation, *, tls: bool) -> str:
    """Start a node with a key that nobody registered, or one that speaks plain text."""
    number = 4 if tls else 5
    config = {"partition-id": 0, "role": "honest"}
    if tls:
        it.make_key("stranger")
    return it.start_node(number, config, key="stranger", tls=tls)


def was_refused(it: Federation, name: str, members: int) -> bool:
    """Tell whether a stranger failed, for a reason of ours, and is in no register."""
    log = it.log(name)
    told = [line.strip() for line in log.splitlines() if REFUSED[name] in line]
    online = sum(entry.get("status") == "online" for entry in it.nodes())
    refused = STARTED in log and NO_CONNECTION in log and bool(told) and online <= members
    say("stranger", name=name, refused=refused, online=online, said=told[:1])
    return refused


def observed(rows: list[dict]) -> list[dict]:
    """Drop what the clock decides, and what only a simulation can know."""
    known_here = ("rejected", "kappa")
    return [{k: v for k, v in row.items() if k not in known_here} for row in timeless(rows)]


def say(what: str, **facts: object) -> None:
    """Print one line of the rehearsal's log."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {what}: {as_json(facts)}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
