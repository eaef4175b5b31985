"""Kill a run with SIGKILL at random points, resume it, and compare it with one that was let alone.

``python -m experiments.benchmarks.kills --kills 100`` prints one JSON line per case. Every run is a
fork of this process, which itself never trains: OpenMP's threads do not survive a fork.

``--workers`` kills worker processes of runs through Flower's engine instead, and nothing else: the
run goes on by itself, and its rows are compared with a run in one process.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from experiments.benchmarks.processes import workers_of
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment
from fedrobust.runs import checkpoint
from fedrobust.runs.folder import CHECKPOINT, RunFolder, timeless

Row = dict[str, Any]
BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "clients": 12,
    "byzantine": 2,
    "rounds": 30,
    "seed": 5,
    "rule": "median",
    "attack": "alie",
    "server": {"lr": 0.2, "evaluate_every": 3},
}
HOSTS = 2
HEAVY = ("flwr_datasets.partitioner", "sklearn.cluster", "sklearn.datasets")  # once, not per fork
# Each remembers something else: velocity only, clients' momentum, rules' tables, attackers.
CASES: dict[str, dict[str, Any]] = {
    "server velocity": {},
    "worker momentum": {"worker_momentum": 0.9, "rule": "nnm+trimmed_mean"},
    "previous aggregate": {"rule": {"name": "centered_clipping", "tau": 1.0}},
    "sums per client": {"rule": "foolsgold"},
    "norms of all rounds": {"rule": "clipped_clustering", "attack": "sign_flip"},
    "attacker's last model": {"attack": "rop", "byzantine": 3},
}


class Different(AssertionError):
    """A resumed run that ended otherwise than the one that was let alone."""


def campaign(case: str, *, kills: int, parent: Path, seed: int = 0) -> dict[str, Any]:
    """Kill runs of one case until there were enough kills; return what was seen.

    Parameters
    ----------
    kills
        SIGKILLs in all, over as many complete runs as that takes.
    parent
        Results go below it.
    seed
        Of the points in time.

    Raises
    ------
    Different
        If a resumed run's rows or its final state are not those of the uninterrupted run.
    """
    experiment = from_dict(BASE | CASES[case])
    began = time.monotonic()
    kill_until_done(experiment, parent / "whole", lambda vain: None)
    expected = outcome(experiment, parent / "whole")
    length = time.monotonic() - began
    # By case, so that a case alone is struck at the same points as among the others.
    source = random.Random(f"{seed}/{case}")
    done, runs = 0, 0
    rounds: list[int] = []

    def delay(vain: int) -> float:
        return source.uniform(0, 0.7 * length * 1.5**vain)

    while done < kills:
        here = parent / f"killed-{runs}"
        struck = kill_until_done(experiment, here, delay)
        if outcome(experiment, here) != expected:
            raise Different(f"{case}: run {runs} after {len(struck)} kills")
        done, runs, rounds = done + len(struck), runs + 1, rounds + struck
    return {"case": case, "kills": done, "runs": runs, "struck after rounds": sorted(rounds)}


def kill_until_done(
    experiment: Experiment, parent: Path, delay: Callable[[int], float | None], most: int = 200
) -> list[int]:
    """Run, kill after a delay, resume, until the run ends by itself; return the rounds on disk.

    The delay is asked for with the number of kills in a row that came before another round was
    done: on a machine that has become slower since the length was measured it has to grow. A
    delay of None lets the run alone.
    """
    folder = RunFolder(parent, experiment)
    struck: list[int] = []
    vain = 0
    for _ in range(most):
        child = start(experiment, parent)
        if (seconds := delay(vain)) is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not status:
            return struck
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise Different(f"the run failed by itself, wait status {status}")
        # Row 0 is the initial model.
        reached = len(folder.rows()) - 1
        vain = 0 if reached > max(struck, default=-1) else vain + 1
        struck.append(reached)
    raise Different(f"no end after {most} kills")


def start(experiment: Experiment, parent: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run an experiment, resuming it, in a child process; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        before()
        run_one(experiment, folder=RunFolder(parent, experiment), resume=True)
        os._exit(0)
    except BaseException:  # a child must not go on as if it were its parent
        traceback.print_exc(file=sys.stderr)
        os._exit(1)


def outcome(experiment: Experiment, parent: Path) -> tuple[list[Row], str]:
    """Return a run's rows without their times, and its final state as text."""
    folder = RunFolder(parent, experiment)
    return timeless(folder.rows()), flat(checkpoint.load(folder.path / CHECKPOINT))


def flat(tree: Any) -> str:
    """Write a tree as text, tensors by their bytes."""
    return json.dumps(tree, default=lambda tensor: tensor.numpy().tobytes().hex())


def strike_workers(case: str, *, kills: int, rounds: int, seed: int = 0) -> Row:
    """Kill workers of one run through Flower, each after a random round; return what was seen.

    A host may die once, twice where clients remember nothing: see ``CohortGrid``.

    Raises
    ------
    Different
        If its rows are not those of a run in one process.
    """
    from experiments.flower_run import run_on_flower

    experiment = from_dict(BASE | CASES[case] | {"rounds": rounds})
    source = random.Random(f"{seed}/{case}")
    points = sorted(source.sample(range(rounds // 2), kills))
    struck: list[int] = []
    seen: list[Row] = []
    over = threading.Event()

    def strike() -> None:
        for point in points:
            while len(seen) <= point or len(found := workers_of(os.getpid())) < HOSTS:
                if over.wait(0.05):
                    return
            over.wait(source.uniform(0, 0.5))  # anywhere in a round
            os.kill(source.choice(found), signal.SIGKILL)
            struck.append(len(seen) - 1)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        rows = run_on_flower(experiment, hosts=HOSTS, on_row=seen.append)
    finally:
        over.set()
        thread.join()
    if timeless(rows) != timeless(run_one(experiment)):
        raise Different(f"{case}: after {len(struck)} killed workers")
    lost = sum(len(row.get("rejected", [])) for row in rows)
    told = {"kills": len(struck), "struck after rounds": struck, "replies lost": lost}
    return {"case": f"workers, {case}", "rounds": rounds} | told


def main(
    kills: int = 20,
    seed: int = 0,
    case: list[str] | None = None,
    workers: bool = False,
    rounds: int = 400,
) -> None:
    """Kill every case and print what was seen."""
    torch.set_num_threads(1)
    if workers:
        for name in case or CASES:
            typer.echo(json.dumps(strike_workers(name, kills=kills, rounds=rounds, seed=seed)))
        return
    for module in HEAVY:
        importlib.import_module(module)
    for name in case or CASES:
        with tempfile.TemporaryDirectory() as parent:
            seen = campaign(name, kills=kills, parent=Path(parent), seed=seed)
        struck = seen.pop("struck after rounds")
        typer.echo(json.dumps(seen | {"distinct rounds struck": len(set(struck)), "lost": 0}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
