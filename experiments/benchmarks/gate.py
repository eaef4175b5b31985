"""What the gate costs: the same rounds and requests with it and without it, at the same time.

``python -m experiments.benchmarks.gate`` starts two SuperLinks with eight honest nodes each, one
behind the gate, and runs the same experiment on both at once, so that both see the same machine.
Then it asks both for messages in turns. ``--rounds 0`` only measures the CPU time of requests to
Flower's web app in this process, which other load does not change. One JSON line a case.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from experiments.deploy.federation import Federation, federation
from experiments.deploy.gate import Gate
from experiments.deploy.hostile import EXPERIMENT, at_work
from experiments.deploy.raw_nodes import Behaviour, RawNode, honest
from experiments.deployment import run_on_nodes
from fedrobust.experiment.load import from_dict
from fedrobust.flower import _compat as flower

GOAL = 1.05
REQUESTS, TURNS = 40, 5
KINDS = {
    "PullMessages": flower.PullMessagesRequest,
    "SendNodeHeartbeat": lambda: flower.SendNodeHeartbeatRequest(heartbeat_interval=30.0),
}


def main(rounds: int = 100, clients: int = 8, limit: float = math.inf) -> None:
    """Measure both, and print the lines; after ``limit`` seconds with the rounds that there are."""
    for case, (with_gate, without) in in_process().items():
        show(case, with_gate, without)
    if not rounds:
        return
    server = EXPERIMENT["server"] | {"deadline": 300.0, "evaluate_every": 1000}
    e = from_dict(
        EXPERIMENT | {"rounds": rounds, "clients": clients, "byzantine": 0, "server": server}
    )
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedrobust-gate-")))
        sites: dict[bool, tuple[Federation, list[RawNode]]] = {}
        for gate in (True, False):
            home = temporary / str(gate)
            it = stack.enter_context(federation(home, nodes=0, namespaces=False, gate=gate))
            behaviours: list[Behaviour] = [honest] * clients
            sites[gate] = it, stack.enter_context(at_work(it, behaviours))

        def measure(gate: bool) -> None:
            it = sites[gate][0]
            run_on_nodes(e, superlink=it.address, output=it.home / "results",
                         certificates=it.home / "ca.crt",
                         on_row=lambda row: seconds[gate].append(row["seconds"]))  # fmt: skip

        threads = [threading.Thread(target=measure, args=(g,), daemon=True) for g in sites]
        end = time.monotonic() + limit
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()) if limit < math.inf else None)
        cut = min(map(len, seconds.values()))  # the first row is no round
        seconds = {gate: found[1:cut] for gate, found in seconds.items()}
        asked = requests({gate: nodes[0] for gate, (_, nodes) in sites.items()})
    rest = {"rounds": cut - 1, "mean_seconds": {str(k): mean(v) for k, v in seconds.items()}}
    show("a round of 8 nodes", statistics.median(seconds[True]), statistics.median(seconds[False]),
         **rest)  # fmt: skip
    per_second = {str(gate): round(1 / each, 1) for gate, each in asked.items()}
    show("a request for messages", asked[True], asked[False], requests_per_second=per_second)


def in_process() -> dict[str, tuple[float, float]]:
    """Return case -> CPU seconds of one request, through the gate and without it; in turns."""
    apps = {gate: flower.superlink_app() for gate in (True, False)}
    callers = {gate: flower.app_client(Gate(app) if gate else app) for gate, app in apps.items()}
    nodes = {gate: flower.register_node(client) for gate, client in callers.items()}
    found: dict[str, dict[bool, list[float]]] = {}
    for _ in range(TURNS):
        for gate, client in callers.items():
            for name, kind in KINDS.items():
                request = kind()
                request.node.node_id = nodes[gate]
                began = time.process_time()
                for _ in range(REQUESTS):
                    flower.call(client, name, request)
                spent = (time.process_time() - began) / REQUESTS
                cells = found.setdefault(f"CPU of {name}", {True: [], False: []})
                cells[gate].append(spent)
    # The least of the turns: whatever else runs can only add to one.
    return {case: (min(cells[True]), min(cells[False])) for case, cells in found.items()}


def requests(nodes: dict[bool, RawNode]) -> dict[bool, float]:
    """Return the median seconds of one request to each SuperLink, asked in turns."""
    for node in nodes.values():
        node.stop()
    found: dict[bool, list[float]] = {gate: [] for gate in nodes}
    for _ in range(TURNS):
        for gate, node in nodes.items():
            request = flower.PullMessagesRequest()
            request.node.node_id = node.node_id
            began = time.perf_counter()
            for _ in range(REQUESTS):
                node.call("PullMessages", request)
            found[gate].append((time.perf_counter() - began) / REQUESTS)
    return {gate: statistics.median(each) for gate, each in found.items()}


def mean(values: list[float]) -> float:
    """Return the mean, rounded."""
    return round(statistics.fmean(values), 3)


def show(case: str, seconds: float, reference: float, **rest: Any) -> None:
    """Print one line."""
    line = {"case": case, "seconds": round(seconds, 6), "reference": "the same without the gate",
            "reference_seconds": round(reference, 6), "ratio": round(seconds / reference, 3),
            "goal": GOAL, "peak_bytes": None, **rest}  # fmt: skip
    typer.echo(json.dumps(line))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
