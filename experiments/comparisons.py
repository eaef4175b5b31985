"""Several results side by side, and what can be said of runs beyond their last number."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments import tables
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import timeless
from fedrobust.spec import suggest

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]
Run = tuple[Experiment, list[Row]]
End = tuple[dict[str, Any], pd.Series]  # attack, defence and seed of a run; measured, by round


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return rows without what the clock decides, as text: in it NaN is equal to itself."""
    return json.dumps(timeless(rows), sort_keys=True, default=str)


@dataclass
class Merged:
    """The runs of several results, each once, with their models."""

    runs: list[Run] = field(default_factory=list)
    models: list[Tensor] = field(default_factory=list)
    running: list[Tensor | None] = field(default_factory=list)

    def take(self, run: Run, model: Tensor | None, running: Tensor | None) -> None:
        """Take in a run unless it is there; of equal settings with other rows both, and say so."""
        experiment, rows = run
        namesakes = [past for e, past in self.runs if e.run_id == experiment.run_id]
        if any(as_text(past) == as_text(rows) for past in namesakes):
            return
        if namesakes:
            text = f"{experiment.name} (seed {experiment.seed}) ran twice, to other rows"
            warnings.warn(f"{text}: both are kept", stacklevel=4)
        self.runs.append(run)
        if model is not None:
            self.models.append(model)
            self.running.append(running)


def differences(finals: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Compare each defence with one of them, seed by seed; see ``Results.against``.

    Parameters
    ----------
    finals
        One line a run: attack, defence, seed, value.

    Raises
    ------
    ConfigError
        If there is no such defence.
    """
    by_seed = finals.pivot_table(
        index=["attack", "seed"], columns="defence", values="value", sort=False
    )
    if baseline not in by_seed.columns:
        hint = suggest(baseline, [str(name) for name in by_seed.columns])
        raise ConfigError([f"unknown defence {baseline!r}; {hint}"])
    # In pairs: what a seed does to both defences is in no difference, and so in no interval.
    apart = by_seed.drop(columns=baseline).sub(by_seed[baseline], axis=0)
    return pd.DataFrame(
        {
            "attack": attack,
            "defence": defence,
            "difference": column.mean(),
            "half_width": tables.half_width(column.tolist()),
            "seeds": int(column.notna().sum()),
        }
        for attack, part in apart.groupby(level="attack", sort=False)
        for defence, column in part.items()
    )


def steadiness(ends: Iterable[End]) -> pd.DataFrame:
    """Return mean, spread, lowest and highest of what each run measured last."""
    return pd.DataFrame(
        {
            **names,
            "mean": found.mean(),
            "std": found.std(),
            "lowest": found.min(),
            "highest": found.max(),
        }
        for names, found in ends
    )


def first_rounds(ends: Iterable[End], target: float, *, hold: int, sign: int) -> pd.DataFrame:
    """Return the first round of each run from which a target is held; missing without one."""
    lines = []
    for names, found in ends:
        # A rolling window stands at its last evaluation: it is moved to its first.
        good = (sign * found >= sign * target).rolling(hold).sum().shift(1 - hold) == hold
        lines.append({**names, "round": good[good].index.min() if good.any() else pd.NA})
    return pd.DataFrame(lines).astype({"round": "Int64"})
