"""One cell of a row: its runs, and what they say, for all clients, by class and for the worst."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.board.protocol import Cell
from experiments.board.score import rounded, stability
from experiments.flags import Run, label
from experiments.results import Results, load
from experiments.tables import final, half_width
from experiments.worst_case import WorstCase
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

Row = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A cell's runs, or why the rule refuses it, or why it is not measured here."""

    cell: Cell
    experiments: tuple[Experiment, ...] = ()
    refused: str = ""
    unmeasured: str = ""


def unmeasured(cell: Cell, device: str) -> str:
    """Say why a cell is not measured on a device; empty where it is."""
    return "it needs a GPU: --device cuda" if cell.federation.gpu and device == "cpu" else ""


def told(output: Path, planned: Planned) -> Row:
    """Return a cell's part of the row, of runs that are finished."""
    found = _place(planned.cell)
    if planned.unmeasured:
        return found | {"not_measured": planned.unmeasured}
    if planned.refused:
        return found | {"refused": planned.refused}
    results = load(RunFolder(output, e).path for e in planned.experiments)
    clean = [run for run in results.runs if run[0].attack["name"] == "none"]
    found |= {
        "clean": rounded(statistics.fmean(final(rows) for _, rows in clean)),
        "clean_detail": detail(clean),
        **_bytes(clean),
        "seconds": round(sum(r.get("seconds", 0.0) for _, rows in results.runs for r in rows), 2),
    }
    # Exactly one: a cell's runs differ in attack and seed alone.
    return found | _attacked(results, results.worst_cases[0]) if planned.cell.byzantine else found


def _place(cell: Cell) -> Row:
    federation = cell.federation
    clients = federation.settings["clients"]
    return {
        "cell": cell.name,
        "federation": federation.name,
        "says": federation.says,
        "heterogeneity": federation.heterogeneity,
        "training": federation.training,
        "sampled": federation.sampled,
        "clients": clients,
        "byzantine": cell.byzantine,
        "share": round(cell.byzantine / clients, 4),
    }


def _attacked(results: Results, worst: WorstCase) -> Row:
    by_attack: dict[str, list[Run]] = {}
    for experiment, rows in results.runs:
        if experiment.attack["name"] != "none":
            by_attack.setdefault(label(experiment.attack), []).append((experiment, rows))
    means = {
        name: rounded(statistics.fmean(final(r) for _, r in runs))
        for name, runs in sorted(by_attack.items())
    }
    # A member of ``auto``, unless an attack from elsewhere that ran beside them leaves less.
    winner = min(means, key=lambda name: (means[name], name != worst.winner))
    interval = half_width([final(rows) for _, rows in by_attack[winner]])
    return {
        "auto": means[winner],
        "auto_detail": detail(by_attack[winner]),
        # NaN is no JSON: one seed has no interval.
        "interval": None if interval != interval else rounded(interval),
        "winner": winner,
        "fixed": worst.fixed,
        "fixed_accuracy": rounded(worst.fixed_accuracy),
        "attacks": means,
        "flags": list(worst.flags),
    }


def detail(runs: Sequence[Run]) -> Row:
    """Return what an accuracy hides, means over the seeds.

    Returns
    -------
    ``stability`` (the standard deviation of the last three accuracies), ``by_class``,
    ``worst_class`` and ``worst_client``: accuracies in [0, 1] of the last evaluation.
    """
    last = [next(r for r in reversed(rows) if "accuracy" in r) for _, rows in runs]
    # The classes are those of the data: as many in every seed.
    classes = [list(map(float, r["class_accuracy"])) for r in last]
    return {
        "stability": rounded(statistics.fmean(stability(rows) for _, rows in runs)),
        "by_class": [rounded(statistics.fmean(c)) for c in zip(*classes, strict=True)],
        "worst_class": rounded(statistics.fmean(min(c) for c in classes)),
        "worst_client": rounded(statistics.fmean(r["worst_client"] for r in last)),
    }


def _bytes(runs: Sequence[Run]) -> Row:
    """Return what a round sends, to all who are asked and back: means over rounds and seeds."""
    rounds = [r for _, rows in runs for r in rows if "bytes_up" in r]
    return {
        key: round(statistics.fmean(r[key] for r in rounds)) for key in ("bytes_up", "bytes_down")
    }
