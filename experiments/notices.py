"""What makes a run or a comparison say less than it seems to, in sentences; the same everywhere.

``before`` reads the settings alone, for ``check`` and the start of ``run``; ``after`` reads what
came of them, for the end of ``run`` and the report. The board and ``attack = "auto"`` have flags
of their own (``experiments.flags``), which share what they can with this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments import flags
from fedrobust.attacks import reach
from fedrobust.attacks.members import stand_for_auto
from fedrobust.experiment import auto
from fedrobust.experiment.schema import Experiment

CLEAN = 0.05  # accuracy lost without an attack


def before(experiments: Sequence[Experiment]) -> list[str]:
    """Say which attacks are none, or hardly one, and which rules were told of too few attackers.

    Where ``auto`` runs it tries every attack, and its flags tell of the winner alone: there a
    scheme is looked at, whether it leaves the attackers anything.
    """
    whole = stand_for_auto(experiments)
    weak = [] if whole else map(auto.weakness, experiments)
    schemes = _schemes(experiments) if whole else []
    few = [(e.defence, flags.told_too_few(e)) for e in experiments if e.byzantine]
    named = [f"{defence}: {line}" for defence, line in few if line]
    return list(dict.fromkeys(filter(None, [*weak, *schemes, *named])))


def _schemes(experiments: Sequence[Experiment]) -> list[str]:
    """Say of each scheme what its votes leave to attackers; runs that differ in attack are one."""
    seen: dict[str, Experiment] = {}
    for one in experiments:
        if one.redundancy.name and one.attack["name"] != "none":
            seen.setdefault(json.dumps(auto.same_but_attack(one), sort_keys=True), one)
    told = [
        (f"{e.defence} (detection {e.redundancy.detection})", say(e))
        for e in seen.values()
        for say in (reach.nothing, reach.farther)
    ]
    return [f"{defence}: {line}" for defence, line in told if line]


def after(results: Any) -> list[str]:
    """Say in which results little can be read: ``Results`` in, sentences out."""
    if not results.headline.is_share:
        return []
    means, halves = results.table(), results.interval()
    seeds = len({experiment.seed for experiment, _ in results.runs})
    return [*wide(means, halves, seeds), *lost_without_attack(means)]


def wide(means: pd.DataFrame, halves: pd.DataFrame, seeds: int) -> list[str]:
    """Some 95 % intervals are so wide that they tell hardly any two defences apart."""
    cells = halves.drop(columns="worst", errors="ignore").stack()
    far = cells[cells > flags.WIDE]
    if far.empty:
        return []
    (defence, attack), half = far.idxmax(), far.max()
    return [
        f"{len(far)} of {len(cells)} cells have an interval wider than"
        f" ± {100 * flags.WIDE:.0f} points"
        f" (the widest: {defence} under {attack},"
        f" {100 * means.at[defence, attack]:.1f} ± {100 * half:.1f}, {seeds} seeds): they tell"
        " little apart; more --seeds"
    ]


def lost_without_attack(means: pd.DataFrame) -> list[str]:
    """Some defences lose much where nobody attacks: their worst case is first of all that."""
    if "none" not in means or len(means) < 2:
        return []
    clean = means["none"].dropna()
    lost = clean.max() - clean
    return [
        f"{name} loses {100 * gap:.1f} points without an attack, against {clean.idxmax()}"
        for name, gap in lost.items()
        if gap > CLEAN
    ]
