"""The worst case of each defence: which member of ``attack = "auto"`` left least, and its flags."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import pandas as pd

from experiments import flags, tables
from experiments.flags import Run, label
from experiments.tables import final
from fedrobust import data
from fedrobust.attacks.members import LEVELS, SEES_ALL, is_searched, members
from fedrobust.data import DataError
from fedrobust.experiment import auto


@dataclass(frozen=True)
class WorstCase:
    """One defence under all members of ``auto``; accuracies in [0, 1], means over the seeds.

    Attributes
    ----------
    defence
        As the table of results names it.
    clean
        Without an attack; NaN where that was not run.
    accuracy, interval
        Under the member that leaves least on average, and the half-width of its 95 % interval.
    winner
        That member.
    fixed, fixed_accuracy
        The most harmful published attack, and what it leaves.
    knowledge
        What its attackers know.
    runs, seconds
        How many runs this is, and the sum of their rounds' time.
    """

    defence: str
    clean: float
    accuracy: float
    interval: float
    winner: str
    fixed: str
    fixed_accuracy: float
    seeds: int
    runs: int
    seconds: float
    flags: tuple[str, ...]
    knowledge: str = SEES_ALL


def worst_cases(runs: Sequence[Run], defences: Sequence[str]) -> list[WorstCase]:
    """Return the worst case of each defence whose runs hold every member of ``auto``.

    Parameters
    ----------
    defences
        Each run's defence, as shown.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, defence in zip(runs, defences, strict=True):
        # By the settings, not by the label: labels leave out what is the same in all runs.
        key = json.dumps(auto.same_but_attack(run[0]), sort_keys=True)
        groups.setdefault(key, []).append((run, defence))
    found = []
    for group in groups.values():
        mode = group[0][0][0].mode
        for level in reversed(LEVELS[mode]):
            mine = [run for run, _ in group if _belongs(run[0].attack, level, mode)]
            if mine and whole(mine, level):
                found.append(_worst(mine, group[0][1], level))
    return found


def _belongs(attack: Any, level: str, mode: str) -> bool:
    return attack["name"] == "none" or dict(attack) in members(level, mode)


def whole(runs: Sequence[Run], level: str = SEES_ALL) -> bool:
    """Whether the runs of one defence hold every member that applies, for every attacked seed."""
    first = runs[0][0]
    if not first.byzantine:
        return False
    wanted = {_key(spec) for spec in auto.applicable(first, level)}
    seeds: dict[int, set[str]] = {}
    for experiment, rows in runs:
        if experiment.attack["name"] != "none" and not math.isnan(final(rows)):
            seeds.setdefault(experiment.seed, set()).add(_key(experiment.attack))
    return bool(seeds) and all(wanted <= found for found in seeds.values())


def _worst(runs: Sequence[Run], defence: str, level: str) -> WorstCase:
    known = {_key(spec) for spec in auto.applicable(runs[0][0], level)}
    clean = [run for run in runs if run[0].attack["name"] == "none"]
    attacked = [run for run in runs if _key(run[0].attack) in known]
    finals: dict[str, list[float]] = {}
    for experiment, rows in attacked:
        finals.setdefault(label(experiment.attack), []).append(final(rows))
    means = {name: statistics.fmean(values) for name, values in finals.items()}
    searched = {label(e.attack) for e, _ in attacked if is_searched(e.attack)}
    winner = min(means, key=means.__getitem__)
    fixed = min((name for name in means if name not in searched), key=means.__getitem__)
    return WorstCase(
        defence=defence if level == SEES_ALL else f"{defence} ({level})",
        knowledge=level,
        clean=statistics.fmean([final(rows) for _, rows in clean]) if clean else math.nan,
        accuracy=means[winner],
        interval=tables.half_width(finals[winner]),
        winner=winner,
        fixed=fixed,
        fixed_accuracy=means[fixed],
        seeds=len(finals[winner]),
        runs=len(attacked),
        seconds=sum(row.get("seconds", 0.0) for _, rows in attacked for row in rows),
        flags=tuple(flags.flags([*clean, *attacked], chance=chance_of(runs[0][0].data))),
    )


@cache
def chance_of(name: str) -> float | None:
    """Return one over the classes of a data set; None where it is not at hand."""
    try:
        return 1 / data.load(name).classes
    except (DataError, OSError):
        return None


def frame(found: Iterable[WorstCase]) -> pd.DataFrame:
    """Return one line per defence, lowest first."""
    lines = sorted((asdict(one) for one in found), key=lambda line: line["accuracy"])
    return pd.DataFrame(lines).set_index("defence") if lines else pd.DataFrame()


def words(found: Iterable[WorstCase]) -> pd.DataFrame:
    """Write the worst cases for people: per cent, and the names of the attacks."""

    def percent(value: float, half: float = math.nan) -> str:
        told = "-" if math.isnan(value) else f"{100 * value:.1f}"
        return told if math.isnan(half) else f"{told} ± {100 * half:.1f}"

    lines: list[dict[str, Any]] = [
        {
            "defence": one.defence,
            "none": percent(one.clean),
            "best fixed": f"{percent(one.fixed_accuracy)} ({one.fixed})",
            "auto": percent(one.accuracy, one.interval),
            "winner": one.winner,
            "runs": str(one.runs),
        }
        for one in sorted(found, key=lambda one: one.accuracy)
    ]
    return pd.DataFrame(lines).set_index("defence") if lines else pd.DataFrame()


def _key(spec: Any) -> str:
    return json.dumps(spec, sort_keys=True)
