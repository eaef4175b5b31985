"""The table of ``experiments.benchmarks.strongest``, of whatever runs are finished in a folder.

Which member is the winner, and which published attack the best one, is decided on the first half of
the test images; the accuracies are of the second half. Both are read from the runs' final models.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments import flags, tables
from experiments.flags import Run, label
from experiments.results import load
from experiments.worst_case import chance_of, whole
from fedrobust import data, models
from fedrobust.attacks.members import is_searched
from fedrobust.evaluation import evaluate
from fedrobust.experiment import auto
from fedrobust.experiment.schema import Experiment
from fedrobust.runs import checkpoint
from fedrobust.runs.folder import RunFolder
from fedrobust.vector import FlatModel

CLEAR, SOME = 0.05, 0.01  # of accuracy
HALVES = "halves.json"  # run -> accuracies, so that a table need not evaluate a model twice
Halves = dict[str, list[float]]


@dataclass(frozen=True)
class Cell:
    """One defence in one federation; accuracies of the second half, one a seed.

    Attributes
    ----------
    experiment
        Any of its runs.
    clean, fixed, worst
        Without an attack, under the best published attack, and under ``auto``'s winner.
    best, winner
        What those two are.
    """

    experiment: Experiment
    clean: list[float]
    best: str
    fixed: list[float]
    winner: str
    worst: list[float]
    flags: list[str]

    @property
    def gains(self) -> list[float]:
        """How much more harm ``auto`` does than the best published attack, seed by seed."""
        return [f - w for f, w in zip(self.fixed, self.worst, strict=True)]


def halves(output: Path, runs: Sequence[Run], data_root: str | None) -> Halves:
    """Return each run's accuracy on the first and on the second half of the test images."""
    path = output / HALVES
    known: Halves = json.loads(path.read_text()) if path.exists() else {}
    for experiment, _ in runs:
        if experiment.run_id not in known:
            known[experiment.run_id] = _measured(output, experiment, data_root)
            path.write_text(json.dumps(known, sort_keys=True) + "\n")
    return known


@cache
def _bench(name: str, model: str, root: str | None) -> tuple[Any, FlatModel]:
    dataset = data.load(name, root=root)
    return dataset, FlatModel(models.build_for(model, dataset, seed=1))


def _measured(output: Path, experiment: Experiment, data_root: str | None) -> list[float]:
    dataset, model = _bench(experiment.data, experiment.model, data_root)
    tree = checkpoint.load(RunFolder(output, experiment).path / "checkpoint.npz")
    model.load(tree["arrays"]["model"])
    images, labels = dataset.test_images, dataset.test_labels
    middle = len(labels) // 2
    return [
        round(evaluate(model.module, images[part], labels[part]).accuracy, 4)
        for part in (slice(None, middle), slice(middle, None))
    ]


def finished(output: Path) -> list[Run]:
    """Return the finished runs of a folder, with their rows."""
    folders = sorted(path.parent for path in output.glob("*/config.toml"))
    runs = load(folders).runs if folders else ()
    return [(e, rows) for e, rows in runs if rows and rows[-1]["round"] == e.rounds]


def found(output: Path, *, data_root: str | None = None) -> list[Cell]:
    """Return the cells of which a seed is whole: every member, and a run without an attack."""
    runs = finished(output)
    known = halves(output, runs, data_root)
    groups: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        key = json.dumps(auto.same_but_attack(run[0]), sort_keys=True)
        groups.setdefault(key, {}).setdefault(run[0].seed, []).append(run)
    cells = []
    for seeds in groups.values():
        complete = [run for group in seeds.values() if _complete(group) for run in group]
        if complete:
            cells.append(_cell(complete, known))
    return sorted(cells, key=_place)


def _complete(runs: list[Run]) -> bool:
    return whole(runs) and any(e.attack["name"] == "none" for e, _ in runs)


def _place(cell: Cell) -> tuple[Any, ...]:
    e = cell.experiment
    return e.data, str(e.partition), e.clients, e.server.momentum, -e.worker_momentum, e.defence


def _cell(runs: list[Run], known: Halves) -> Cell:
    by_attack: dict[str, list[Experiment]] = {}
    for experiment, _ in sorted(runs, key=lambda run: run[0].seed):
        by_attack.setdefault(label(experiment.attack), []).append(experiment)
    clean = by_attack.pop("none")

    def half(which: int, members: Iterable[Experiment]) -> list[float]:
        return [known[e.run_id][which] for e in members]

    first = {name: statistics.fmean(half(0, members)) for name, members in by_attack.items()}
    published = [n for n, members in by_attack.items() if not is_searched(members[0].attack)]
    winner, best = min(first, key=first.__getitem__), min(published, key=first.__getitem__)
    return Cell(
        clean[0],
        half(1, clean),
        best,
        half(1, by_attack[best]),
        winner,
        half(1, by_attack[winner]),
        flags.flags(runs, chance=chance_of(clean[0].data)),
    )


def table(cells: Sequence[Cell]) -> str:
    """Write cells as Markdown, one line each, and the counts behind them."""
    lines = [
        "| momentum | defence | none | best published | auto | winner | more harm by | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {c.experiment.worker_momentum:g} | {c.experiment.defence} | {_told(c.clean)} "
        f"| {_told(c.fixed)} ({c.best}) | {_told(c.worst)} | {c.winner} | {_told(c.gains)} "
        f"| {len(c.worst)} |"
        for c in cells
    ]
    for momentum in sorted({c.experiment.worker_momentum for c in cells}, reverse=True):
        mine = [c for c in cells if c.experiment.worker_momentum == momentum]
        lines.append(f"\nmomentum {momentum:g}: {counted(mine)}")
    return "\n".join(lines)


def counted(cells: Sequence[Cell]) -> str:
    """Say in how many cells ``auto`` does clearly more harm, some, or none; and who wins."""
    gains = [statistics.fmean(c.gains) for c in cells]
    clear, some = sum(g >= CLEAR for g in gains), sum(SOME <= g < CLEAR for g in gains)
    lost = sum(g <= -SOME for g in gains)
    winners = Counter(c.winner.partition(" ")[0] for c in cells)
    told = ", ".join(f"{name} {count}" for name, count in winners.most_common())
    return (
        f"{clear} of {len(cells)} cells by 5 points or more, {some} by 1 to 5,"
        f" {len(cells) - clear - some - lost} within 1, {lost} less harmful than the best published"
        f" attack; winners: {told}"
    )


def _told(values: Sequence[float]) -> str:
    half = tables.half_width(values)
    more = "" if math.isnan(half) else f" ± {100 * half:.1f}"
    return f"{100 * statistics.fmean(values):.1f}{more}"


def document(cells: Sequence[Cell]) -> str:
    """Write cells as JSON, every seed's accuracies and the flags among them."""
    told = [
        {"clients": c.experiment.clients, "byzantine": c.experiment.byzantine,
         "momentum": c.experiment.worker_momentum, "defence": c.experiment.defence,
         "clean": c.clean, "fixed": c.best, "fixed_accuracy": c.fixed, "winner": c.winner,
         "accuracy": c.worst, "flags": c.flags}
        for c in cells
    ]  # fmt: skip
    return json.dumps(told, indent=1) + "\n"
