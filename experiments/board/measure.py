"""Measure one rule by the protocol: tune on a validation split, run every cell, write one row."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from experiments.board import cells
from experiments.board.bench import Bench, Row
from experiments.board.cells import Planned
from experiments.board.protocol import PROTOCOL, Cell, document
from experiments.board.score import score
from experiments.tables import final
from fedrobust import aggregation
from fedrobust.attacks.members import VERSION as MEMBERS
from fedrobust.data.sets import VALIDATION
from fedrobust.experiment.load import expand, override
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder
from fedrobust.seeds import generator
from fedrobust.version import __version__

if TYPE_CHECKING:
    from experiments.expected_time import RoundTime

Say = Callable[[str], None]
TIMED = (20, 100_000)  # n, d of the aggregation time


def measure(bench: Bench, *, say: Say = lambda line: None) -> Row:
    """Tune, run, and return the row.

    Parameters
    ----------
    say
        Is told what comes next, and how long it will take.
    """
    began, used = time.monotonic(), _processor_seconds()
    tuned = tune(bench, say=say)
    planned = plan(bench, tuned)
    runs = runs_of(planned)
    waiting = _waiting(bench, runs)
    say(forecast(bench, planned))
    bench.run(runs, lambda experiment, row: None)
    told = [cells.told(bench.output, one) for one in planned]
    return {
        "protocol": PROTOCOL,
        "budget": bench.budget.name,
        "rule": bench.rule,
        "settings": dict(bench.settings),
        "origin": bench.origin,
        "fedrobust": __version__,
        "members": MEMBERS,
        "external": [bench.external] if bench.external else [],
        "seeds": list(bench.budget.seeds),
        "tuned": tuned,
        "cells": told,
        "score": score(told),
        "aggregation_ms": aggregation_time(bench.spec()),
        "runs": len(runs),
        "seconds": round(time.monotonic() - began, 1),
        # Of a row that was gone on with nobody knows it.
        "processor_seconds": round(_processor_seconds() - used, 1)
        if len(waiting) == len(runs)
        else None,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "left_out": list(bench.budget.left_out),
    }


def runs_of(planned: Sequence[Planned]) -> list[Experiment]:
    """Return all runs of a plan.

    Raises
    ------
    ConfigError
        If there are none: the rule refuses every cell.
    """
    runs = [e for one in planned for e in one.experiments]
    if not runs:
        reasons = "; ".join(dict.fromkeys(one.refused for one in planned if one.refused))
        raise ConfigError([f"the rule runs in no cell of the protocol: {reasons}"])
    return runs


def _processor_seconds() -> float:
    """Return what this process and the children that have ended have computed so far."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def tune(bench: Bench, *, say: Say) -> Row:
    """Choose each federation's one free value on the validation split, without an attack.

    Returns
    -------
    Federation -> ``key``, the chosen ``value``, and the accuracy of each that was ``tried``; the
    rule is told of as many attackers as in the federation's first attacked cell.
    """
    chosen: Row = {}
    todo = {name: _candidates(bench, cell) for name, cell in _firsts(bench).items()}
    runs = [e for pairs in todo.values() for _, e in pairs]
    say(f"tuning: {len(runs)} runs without an attack, on a validation split")
    bench.run(runs, lambda experiment, row: None)
    for name, pairs in todo.items():
        if not pairs:
            continue
        tried = {value: final(bench.rows_of(e)) for value, e in pairs}
        # Ties go to the smaller value in every run, and the last bits decide nothing.
        best = max(tried, key=lambda value: (round(tried[value], 6), -value))
        key = next(c.federation.tuned for c in bench.budget.cells if c.federation.name == name)
        told = {f"{value:g}": round(accuracy, 4) for value, accuracy in tried.items()}
        chosen[name] = {"key": key, "value": best, "tried": told}
    return chosen


def _firsts(bench: Bench) -> dict[str, Cell]:
    """Return the first attacked cell of each federation."""
    firsts: dict[str, Cell] = {}
    for cell in bench.budget.cells:
        if cell.byzantine and not cells.unmeasured(cell, bench.device):
            firsts.setdefault(cell.federation.name, cell)
    return firsts


def _candidates(bench: Bench, cell: Cell) -> list[tuple[float, Experiment]]:
    """Return a run for each value of the tuned key; none where the rule refuses the cell."""
    # One seed: the tuning budget is one run a value.
    base = document(cell, bench.budget, bench.rule, seed=bench.budget.seeds[0])
    base |= {"rule": bench.spec()}
    try:
        expand(base)
    # The rule refuses this cell: ``_planned`` says why in the row.
    except ConfigError:
        return []
    # A split of the training set stands for the test set, which must choose nothing.
    base |= {"data": base["data"] + VALIDATION}
    return [
        # Without an attack ``expand`` gives one run; the tuned key goes over what the cell sets.
        (value, expand(override(base, {cell.federation.tuned: value}))[0])
        for value in cell.federation.grid
    ]


def plan(bench: Bench, tuned: Mapping[str, Any]) -> list[Planned]:
    """Return each cell's runs: none and auto, or none alone where nobody attacks."""
    return [_planned(bench, cell, tuned) for cell in bench.budget.cells]


def _planned(bench: Bench, cell: Cell, tuned: Mapping[str, Any]) -> Planned:
    if reason := cells.unmeasured(cell, bench.device):
        return Planned(cell, unmeasured=reason)
    found: list[Experiment] = []
    chosen = tuned.get(cell.federation.name)
    tuned = {chosen["key"]: chosen["value"]} if chosen else {}
    for seed in bench.budget.seeds:
        base = override(document(cell, bench.budget, bench.rule, seed=seed), tuned)
        more = ["auto", *filter(None, [bench.against])]
        attacks = ["none", *more] if cell.byzantine else ["none"]
        try:
            found += expand(base | {"rule": bench.spec(), "sweep": {"attack": attacks}})
        except ConfigError as error:
            return Planned(cell, refused=error.errors[0])
    return Planned(cell, tuple(found))


def forecast(bench: Bench, planned: Sequence[Planned]) -> str:
    """Say how many runs are left, and how long they will take, a few rounds measured for each.

    Each federation is measured by itself: what a round costs differs between them.
    """
    from experiments.expected_time import measured, spoken

    runs, seconds, left = runs_of(planned), 0.0, 0
    times: dict[str, RoundTime] = {}
    for one in planned:
        for experiment in _waiting(bench, one.experiments):
            name = one.cell.federation.name
            if name not in times:
                times[name] = measured(one.experiments[-1], data_root=bench.data_root)
            seconds, left = seconds + times[name].of(experiment), left + 1
    if not left:
        return f"all {len(runs)} runs are there already"
    processes = min(bench.workers or os.cpu_count() or 1, left)
    return (
        f"{left} runs, about {spoken(seconds / processes)} on {processes} process(es), by a few"
        f" rounds in each federation ({len(runs) - left} of {len(runs)} are there already)"
    )


def _waiting(bench: Bench, runs: Sequence[Experiment]) -> list[Experiment]:
    return [e for e in runs if not RunFolder(bench.output, e).finished]


def aggregation_time(spec: Mapping[str, Any]) -> Row:
    """Return the median milliseconds of five calls on a Gaussian matrix (n, d), f = 4."""
    n, d = TIMED
    probe = expand(
        {"data": "digits", "model": "linear", "clients": n, "byzantine": 4, "rounds": 1, "seed": 1,
         "attack": "none", "rule": dict(spec)}
    )[0]  # fmt: skip
    rows = torch.randn(n, d, generator=generator(0, "timing"))
    known = {"layers": lambda: (("weight", (d,)),), "model": lambda: rows[0]}
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        # A fresh rule for each call: one with memory would go on from the call before.
        aggregation.build(probe.rule, pre=probe.pre).apply(
            rows, generator=generator(0, "timing"), server=known
        )
        taken.append(1000 * (time.perf_counter() - began))
    return {"n": n, "d": d, "ms": round(statistics.median(taken), 2)}
