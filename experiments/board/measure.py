"""Measure one rule by the protocol: tune on a validation split, run every cell, write one row."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.board.protocol import PROTOCOL, Budget, Cell, document
from experiments.results import load
from experiments.sweep import Sweep
from experiments.tables import final
from experiments.worst_case import WorstCase
from fedrobust import aggregation, plugins
from fedrobust.attacks.members import VERSION as MEMBERS
from fedrobust.data.sets import VALIDATION
from fedrobust.experiment.load import expand, override
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder, read_rows
from fedrobust.seeds import generator
from fedrobust.spec import parse_spec
from fedrobust.version import __version__

Row = dict[str, Any]
Say = Callable[[str], None]
TIMED = (20, 100_000)  # n, d of the aggregation time


@dataclass(frozen=True)
class Bench:
    """One measurement: what, how much of it, where its runs go.

    Attributes
    ----------
    rule
        As a configuration writes it: ``krum``, ``nnm+krum``, or a function of a file in use.
    origin
        "fedrobust", or the file's name and digest.
    """

    rule: str
    budget: Budget
    output: Path
    origin: str = "fedrobust"
    workers: int = 0
    data_root: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """Return the rule's spec with its settings."""
        return {"name": self.rule, **dict(self.settings)}

    def run(self, experiments: Sequence[Experiment], on_row: Callable[..., None]) -> None:
        """Run what is not finished."""
        Sweep(list(experiments), self.output, "in_process", self.data_root, self.workers).run(
            on_row
        )

    def rows_of(self, experiment: Experiment) -> list[Row]:
        """Read a finished run."""
        return read_rows(RunFolder(self.output, experiment).path / "rounds.jsonl")


@dataclass(frozen=True)
class Planned:
    """A cell's runs, or why the rule refuses it."""

    cell: Cell
    experiments: tuple[Experiment, ...] = ()
    refused: str = ""


def measure(bench: Bench, *, say: Say = lambda line: None) -> Row:
    """Tune, run, and return the row.

    Parameters
    ----------
    say
        Is told what comes next, and how long it will take.
    """
    began = time.monotonic()
    tuned = tune(bench, say=say)
    planned = plan(bench, tuned)
    runs = [e for one in planned for e in one.experiments]
    if not runs:
        reasons = "; ".join(dict.fromkeys(one.refused for one in planned))
        raise ConfigError([f"rule {bench.rule!r} runs in no cell of the protocol: {reasons}"])
    say(_forecast(bench, runs))
    bench.run(runs, lambda experiment, row: None)
    cells = [_cell(bench, one) for one in planned]
    return {
        "protocol": PROTOCOL,
        "budget": bench.budget.name,
        "rule": bench.rule,
        "settings": dict(bench.settings),
        "origin": bench.origin,
        "fedrobust": __version__,
        "members": MEMBERS,
        "seeds": list(bench.budget.seeds),
        "tuned": tuned,
        "cells": cells,
        "score": score(cells),
        "aggregation_ms": aggregation_time(bench.spec()),
        "runs": len(runs),
        "seconds": round(time.monotonic() - began, 1),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "left_out": list(bench.budget.left_out),
    }


def tune(bench: Bench, *, say: Say) -> Row:
    """Choose each federation's one free value on the validation split, without an attack.

    Returns
    -------
    Federation -> ``key``, the chosen ``value``, and the accuracy of each that was ``tried``; the
    rule is told of as many attackers as in the federation's first attacked cell.
    """
    chosen: Row = {}
    todo = {name: _candidates(bench, cell) for name, cell in _firsts(bench.budget).items()}
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


def _firsts(budget: Budget) -> dict[str, Cell]:
    """Return the first attacked cell of each federation."""
    firsts: dict[str, Cell] = {}
    for cell in budget.cells:
        if cell.byzantine:
            firsts.setdefault(cell.federation.name, cell)
    return firsts


def _candidates(bench: Bench, cell: Cell) -> list[tuple[float, Experiment]]:
    """Return a run for each value of the tuned key; none where the rule refuses the cell."""
    # One seed: the tuning budget is one run a value.
    base = document(cell, bench.budget, bench.rule, seed=bench.budget.seeds[0])
    # A split of the training set stands for the test set, which must choose nothing.
    base |= {"rule": bench.spec(), "data": base["data"] + VALIDATION}
    try:
        return [
            # Without an attack ``expand`` gives one run; the tuned key goes over what the cell
            # sets.
            (value, expand(override(base, {cell.federation.tuned: value}))[0])
            for value in cell.federation.grid
        ]
    # The rule refuses this cell: ``_planned`` says why in the row.
    except ConfigError:
        return []


def plan(bench: Bench, tuned: Mapping[str, Any]) -> list[Planned]:
    """Return each cell's runs: none and auto, or none alone where nobody attacks."""
    return [_planned(bench, cell, tuned) for cell in bench.budget.cells]


def _planned(bench: Bench, cell: Cell, tuned: Mapping[str, Any]) -> Planned:
    found: list[Experiment] = []
    chosen = tuned.get(cell.federation.name)
    tuned = {chosen["key"]: chosen["value"]} if chosen else {}
    for seed in bench.budget.seeds:
        base = override(document(cell, bench.budget, bench.rule, seed=seed), tuned)
        attacks = ["none", "auto"] if cell.byzantine else ["none"]
        try:
            found += expand(base | {"rule": bench.spec(), "sweep": {"attack": attacks}})
        except ConfigError as error:
            return Planned(cell, refused=error.errors[0])
    return Planned(cell, tuple(found))


def _forecast(bench: Bench, runs: Sequence[Experiment]) -> str:
    from experiments.expected_time import expected

    waiting = [e for e in runs if not RunFolder(bench.output, e).finished]
    if not waiting:
        return f"all {len(runs)} runs are there already"
    said = expected(waiting, workers=bench.workers, data_root=bench.data_root)
    return f"{said} ({len(runs) - len(waiting)} of {len(runs)} are there already)"


def _cell(bench: Bench, planned: Planned) -> Row:
    """Return a cell's part of the row."""
    cell, clients = planned.cell, planned.cell.federation.settings["clients"]
    told: Row = {
        "cell": cell.name,
        "federation": cell.federation.name,
        "says": cell.federation.says,
        "heterogeneity": cell.federation.heterogeneity,
        "clients": clients,
        "byzantine": cell.byzantine,
        "share": round(cell.byzantine / clients, 4),
    }
    if planned.refused:
        return told | {"refused": planned.refused}
    results = load(RunFolder(bench.output, e).path for e in planned.experiments)
    seconds = sum(row.get("seconds", 0.0) for _, rows in results.runs for row in rows)
    clean = [rows for e, rows in results.runs if e.attack["name"] == "none"]
    told |= {
        "clean": _rounded(statistics.fmean(map(final, clean))),
        "stability": _rounded(statistics.fmean(map(stability, clean))),
        "seconds": round(seconds, 2),
    }
    if not cell.byzantine:
        return told
    # Exactly one: a cell's runs differ in attack and seed alone.
    (one,) = results.worst_cases
    return told | _attacked(one)


def _attacked(one: WorstCase) -> Row:
    return {
        "auto": _rounded(one.accuracy),
        "interval": None if one.interval != one.interval else _rounded(one.interval),
        "winner": one.winner,
        "fixed": one.fixed,
        "fixed_accuracy": _rounded(one.fixed_accuracy),
        "flags": list(one.flags),
    }


def stability(rows: Sequence[Row]) -> float:
    """Return the standard deviation of the last three accuracies: how much a round decides."""
    last = [row["accuracy"] for row in rows if "accuracy" in row][-3:]
    return statistics.pstdev(last) if last else 0.0


def score(cells: Sequence[Mapping[str, Any]]) -> Row:
    """Return the lowest accuracy under ``auto``: up to 20 % attackers, and over all cells.

    A cell that the rule refuses counts as 0: there it is no defence at all.
    """
    attacked = [c for c in cells if c["byzantine"]]
    upto = [c.get("auto", 0.0) for c in attacked if c["share"] <= 0.2]
    return {
        "worst": min(upto, default=None),
        "worst_anywhere": min((c.get("auto", 0.0) for c in attacked), default=None),
        "refused": sum("refused" in c for c in attacked),
    }


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


def _rounded(value: float) -> float:
    return round(value, 4)


def bench_of(source: str, bench: Bench) -> Bench:
    """Return the measurement of ``RULE`` or ``FILE.py[:NAME]``.

    Raises
    ------
    ConfigError
        If a file holds no function, or several and none is named.
    """
    path, ending, name = source.partition(".py")
    if not ending:
        chosen = parse_spec(source)
        settings = {key: value for key, value in chosen.items() if key != "name"}
        return replace(bench, rule=chosen["name"], settings=settings)
    file = Path(path + ".py")
    found = plugins.use(file)
    names = [part.name for part in found if part.kind == "rule"] or plugins.functions_in(file)
    wanted = name.removeprefix(":")
    if wanted:
        names = [wanted]
    if len(names) != 1:
        had = ", ".join(names) or "none"
        raise ConfigError([f"{file} holds {had}: name the rule, {file}:NAME"])
    return replace(bench, rule=names[0], origin=f"{file.name} {plugins.digest(file)}")
