"""How long the runs of ``attack = "auto"`` will take: three rounds of two of them, measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.simulation import run_one
from fedrobust.attacks.members import questions
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import Experiment

ROUNDS = 3  # one warms up, one is measured, one is evaluated
ASKS, ASKS_NOT = {"name": "gradient_search"}, {"name": "ipm", "epsilon": 0.5}
ANSWERS = {"name": "flip"}


@dataclass(frozen=True)
class RoundTime:
    """Seconds of a round without questions to the rule, and of one question."""

    plain: float
    question: float

    def of(self, experiment: Experiment) -> float:
        """Return the seconds that a whole run will take."""
        asked = questions(experiment.attack)
        return experiment.rounds * (self.plain + asked * self.question)


def measured(experiment: Experiment, *, data_root: str | None = None) -> RoundTime:
    """Run three rounds with an attack that asks the rule, and three with one that does not.

    Of an ensemble three rounds are run once.
    """
    if experiment.mode == "ensemble":  # its members train alike, whatever they answer
        return RoundTime(_seconds(experiment, ANSWERS, data_root), 0.0)
    plain, asking = (_seconds(experiment, spec, data_root) for spec in (ASKS_NOT, ASKS))
    # The difference of two measured times: noise may turn it below zero.
    return RoundTime(plain, max(0.0, asking - plain) / questions(ASKS))


def _seconds(experiment: Experiment, attack: dict, data_root: str | None) -> float:
    """Return the seconds of the second round: the first warms up, the last is evaluated."""
    document = experiment.to_dict() | {"attack": attack, "rounds": ROUNDS}
    for key in ("pretrain", "semi"):
        document.pop(key, None)  # these need more rounds than there are
    document["server"] = document["server"] | {"evaluate_every": ROUNDS}
    rows = run_one(from_dict(document), data_root=data_root)
    return float(rows[ROUNDS - 1]["seconds"])


def expected(
    experiments: Sequence[Experiment], *, workers: int = 0, data_root: str | None = None
) -> str:
    """Say how many runs these are and how long they will take, one defence measured for each."""
    times: dict[str, RoundTime] = {}
    total = 0.0
    for one in experiments:
        if one.defence not in times:
            times[one.defence] = measured(one, data_root=data_root)
        total += times[one.defence].of(one)
    processes = min(workers or os.cpu_count() or 1, len(experiments))
    return (
        f"{len(experiments)} runs, about {spoken(total / processes)} on {processes} process(es),"
        " by three rounds of each defence; evaluations come on top"
    )


def spoken(seconds: float) -> str:
    """Write a duration: ``40 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
