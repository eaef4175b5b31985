"""Results of one run or of a sweep: frames, tables, pictures."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from experiments import tables
from experiments.tables import final
from fedrobust.experiment.load import from_dict, read
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.plugins import Part, installed
from fedrobust.redundancy.rounds import shown
from fedrobust.runs.folder import read_rows
from fedrobust.spec import suggest
from fedrobust.training.tasks import ACCURACY, Headline, headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from experiments.worst_case import WorstCase


Run = tuple[Experiment, list[dict[str, Any]]]
CLOCK = ("seconds", "times")  # beginnings of the keys that hold durations


@dataclass(frozen=True, repr=False)
class Results:
    """The rounds of one or more experiments.

    Attributes
    ----------
    runs
        (experiment, rows) pairs; a row is one line of rounds.jsonl.
    models
        Each run's final model, (d,); empty unless ``simulate`` was asked to keep them.
    running
        The running statistics of BatchNorm that belong to each model, (b,), None without.
    parts
        Objects of the user's that the runs' names stand for.
    """

    runs: tuple[tuple[Experiment, list[dict[str, Any]]], ...]
    models: tuple[Tensor, ...] = ()
    running: tuple[Tensor | None, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """One line per run and round, with the run's attack, defence and seed beside it."""
        named = self.names
        return pd.DataFrame(
            {"run": e.run_id, **names, "seed": e.seed, **row}
            for (e, rows), names in zip(self.runs, named, strict=True)
            for row in rows
        )

    @property
    def accuracy(self) -> float:
        """Final clean accuracy in [0, 1], mean over the runs."""
        return statistics.fmean(final(rows) for _, rows in self.runs)

    @property
    def score(self) -> float:
        """Final value of what tables show, see ``headline``: mean over the runs."""
        column = self.headline.column
        return statistics.fmean(final(rows, column) for _, rows in self.runs)

    @cached_property
    def headline(self) -> Headline:
        """What tables and pictures show: the accuracy, or else the first run's first metric."""
        measured = {key for _, rows in self.runs for row in rows for key in row}
        known = any("loss" in row for _, rows in self.runs for row in rows)
        return headline(self.runs[0][0].metrics, measured) if known else ACCURACY

    @overload
    def table(self, format: None = None) -> pd.DataFrame: ...
    @overload
    def table(self, format: str) -> str: ...

    def table(self, format: str | None = None) -> pd.DataFrame | str:
        """Final accuracy, defence x attack: the mean over seeds; last column the worst attack.

        Without an accuracy it is the first metric, see ``headline``.

        Parameters
        ----------
        format
            None for a frame of fractions; "text", "markdown" or "latex" for the written table in
            per cent, with the half-width of the 95 % interval where there are several seeds.

        Raises
        ------
        ConfigError
            For an unknown format.
        """
        means = self._pivot("mean")
        means = means.assign(worst=self._worst(means))
        if format is None:
            return means
        percent = self.headline.is_share
        return tables.render(means, self.interval(), format=format, percent=percent)

    def spread(self) -> pd.DataFrame:
        """Standard deviation over seeds (ddof 1) of each cell; NaN for a single seed."""
        return self._pivot("std")

    def interval(self) -> pd.DataFrame:
        """Half-width of the 95 % t-interval over seeds of each cell of ``table``.

        The column ``worst`` repeats that of the attack which is worst on average.
        """
        means, halves = self._pivot("mean"), self._pivot(tables.half_width)
        worst = [
            halves.at[name, self._worst_of(row)] if row.notna().any() else float("nan")
            for name, row in means.iterrows()
        ]
        return halves.assign(worst=worst)

    @property
    def auto(self) -> pd.DataFrame:
        """The worst case of each defence that ran under every member of ``attack = "auto"``.

        One line a defence, the lowest first: ``clean``, ``accuracy`` and ``interval`` under the
        ``winner``, the best published attack (``fixed``, ``fixed_accuracy``), ``seeds``, ``runs``,
        ``seconds``, and ``flags``: sentences on why the number may be wrong. Empty without any.
        """
        from experiments.worst_case import frame

        return frame(self.worst_cases)

    @property
    def worst_cases(self) -> list[WorstCase]:
        """The lines of ``auto`` as records, in the order of the table."""
        from experiments.worst_case import worst_cases

        return worst_cases(self.runs, [names["defence"] for names in self.names])

    def compare(self, *others: Results) -> Results:
        """Put the runs of several results side by side.

        A run that occurs twice is kept once: the same settings and seed, and the same rows but for
        the seconds. Equal settings with other rows (another machine, another version) are both
        kept, with a warning. The models are kept where every result has its own.
        """
        results = (self, *others)
        modelled = all(len(one.models) == len(one.runs) for one in results)
        if not modelled and any(one.models for one in results):
            warnings.warn("not every result kept its models: compare keeps none", stacklevel=2)
        kept: list[Run] = []
        models: list[Tensor] = []
        running: list[Tensor | None] = []
        for one in results:
            for place, (experiment, rows) in enumerate(one.runs):
                namesakes = [past for e, past in kept if e.run_id == experiment.run_id]
                if any(timeless(past) == timeless(rows) for past in namesakes):
                    continue
                if namesakes:
                    text = f"{experiment.name} (seed {experiment.seed}) ran twice, to other rows"
                    warnings.warn(f"{text}: both are kept", stacklevel=2)
                kept.append((experiment, rows))
                models += [one.models[place]] if modelled else []
                running += [one.running[place] if one.running else None] if modelled else []
        parts = {(p.kind, p.name): p for one in results for p in one.parts}
        return Results(tuple(kept), tuple(models), tuple(running), tuple(parts.values()))

    def against(self, baseline: str) -> pd.DataFrame:
        """Compare each defence with one of them, seed by seed.

        Parameters
        ----------
        baseline
            A row name of ``table``.

        Returns
        -------
        One line per attack and other defence: ``difference`` of final accuracy, mean over the seeds
        that both ran, ``half_width`` of its 95 % t-interval (NaN for one seed), and ``seeds``.

        Raises
        ------
        ConfigError
            If there is no such defence.
        """
        finals = self._finals().pivot_table(
            index=["attack", "seed"], columns="defence", values="value", sort=False
        )
        if baseline not in finals.columns:
            hint = suggest(baseline, [str(name) for name in finals.columns])
            raise ConfigError([f"unknown defence {baseline!r}; {hint}"])
        differences = finals.drop(columns=baseline).sub(finals[baseline], axis=0)
        return pd.DataFrame(
            {
                "attack": attack,
                "defence": defence,
                "difference": column.mean(),
                "half_width": tables.half_width(column.tolist()),
                "seeds": int(column.notna().sum()),
            }
            for attack, part in differences.groupby(level="attack", sort=False)
            for defence, column in part.items()
        )

    def stability(self, last: int = 5) -> pd.DataFrame:
        """Say how steady each run ended: of its last evaluations the mean, the spread, the ends.

        Parameters
        ----------
        last
            How many evaluations count.

        Returns
        -------
        One line a run: attack, defence, seed, ``mean``, ``std`` (ddof 1), ``lowest``, ``highest``.
        """
        return pd.DataFrame(
            {
                **names,
                "seed": e.seed,
                "mean": found.mean(),
                "std": found.std(),
                "lowest": found.min(),
                "highest": found.max(),
            }
            for e, names, found in self._ends(last)
        )

    def reached(self, target: float, *, hold: int = 1) -> pd.DataFrame:
        """Name the first round from which a target is held.

        Parameters
        ----------
        target
            Of what tables show: at least this, or at most, where less is better.
        hold
            Evaluations in a row that must reach it.

        Returns
        -------
        One line a run: attack, defence, seed, and ``round``, the first of them; missing where the
        target was never held.
        """
        sign = 1 if self.headline.best == "max" else -1
        lines = []
        for e, names, found in self._ends(None):
            # A rolling window stands at its last evaluation: it is moved to its first.
            good = (sign * found >= sign * target).rolling(hold).sum().shift(1 - hold) == hold
            first = good[good].index.min() if good.any() else pd.NA
            lines.append({**names, "seed": e.seed, "round": first})
        return pd.DataFrame(lines).astype({"round": "Int64"})

    def _ends(self, last: int | None) -> Iterator[tuple[Experiment, dict[str, str], pd.Series]]:
        """Yield each run with what was measured, by round."""
        column = self.headline.column
        for (e, rows), names in zip(self.runs, self.names, strict=True):
            found = pd.Series({row["round"]: row[column] for row in rows if column in row})
            yield e, names, found if last is None else found.iloc[-last:]

    def state_dict(self, run: int = 0, *, data_root: str | None = None) -> dict[str, Tensor]:
        """Return a run's final model as a PyTorch state_dict: names, parameters and buffers.

        Raises
        ------
        ConfigError
            If the models were not kept.
        """
        from experiments.export import state_dict

        if not self.models:
            raise ConfigError(["no models were kept: simulate(..., keep_models=True)"])
        running = self.running[run] if self.running else None
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(installed(part))
            return state_dict(
                self.runs[run][0], self.models[run], statistics=running, data_root=data_root
            )

    def plot(self) -> Figure:
        """Draw accuracy over rounds for one run, the heat map of the table for several."""
        from experiments.pictures import curves, heat_map

        several = len({tuple(names.values()) for names in self.names}) > 1
        shown = self.headline
        if several:
            return heat_map(self.table(), shown, self.interval())
        return curves(self.frame, shown)

    def __repr__(self) -> str:
        what = self.headline.column
        return f"Results of {len(self.runs)} run(s), final {what}:\n{self.table().round(4)}"

    def _repr_html_(self) -> str:
        from experiments.report.heat import heat_table, scale

        return heat_table(self.table(), self.interval(), **scale(self.headline, self.table()))

    def _worst(self, means: pd.DataFrame) -> pd.Series:
        return means.max(axis=1) if self.headline.best == "min" else means.min(axis=1)

    def _worst_of(self, row: pd.Series) -> Any:
        return row.idxmax() if self.headline.best == "min" else row.idxmin()

    def _finals(self) -> pd.DataFrame:
        column = self.headline.column
        return pd.DataFrame(
            {**names, "seed": e.seed, "value": final(rows, column)}
            for (e, rows), names in zip(self.runs, self.names, strict=True)
        )

    def _pivot(self, statistic: Any) -> pd.DataFrame:
        finals = self._finals()
        table = finals.pivot_table(
            index="defence", columns="attack", values="value", aggfunc=statistic, dropna=False
        )
        # Pandas sorts by name: tables have the order of the runs.
        return table.reindex(
            index=list(dict.fromkeys(finals["defence"])),
            columns=list(dict.fromkeys(finals["attack"])),
        )

    @property
    def names(self) -> list[dict[str, str]]:
        """Each run's ``attack`` and ``defence``, with the settings in which namesakes differ."""
        attacks = distinct([[e.attack, *shown(e)] for e, _ in self.runs])
        defences = distinct([e.stages for e, _ in self.runs])
        others = varied([_settings(e) for e, _ in self.runs])
        defences = [f"{d} [{o}]" if o else d for d, o in zip(defences, others, strict=True)]
        numbers = numbered([e for e, _ in self.runs], list(zip(attacks, defences, strict=True)))
        return [
            {"attack": a, "defence": d + n}
            for a, d, n in zip(attacks, defences, numbers, strict=True)
        ]


def numbered(experiments: list[Experiment], labels: list[tuple[str, str]]) -> list[str]:
    """Return " #2", " #3", ... for settings that no label tells apart; "" for the first of each.

    Without it the table would average different experiments as if they were seeds.
    """
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    numbers = []
    for experiment, label in zip(experiments, labels, strict=True):
        settings = {k: v for k, v in experiment.to_dict().items() if k != "seed"}
        known = seen.setdefault(label, [])
        if settings not in known:
            known.append(settings)
        place = known.index(settings)
        numbers.append(f" #{place + 1}" if place else "")
    return numbers


def timeless(rows: list[dict[str, Any]]) -> str:
    """Return rows without what the clock alone decides, as text: in it NaN is equal to itself."""
    told = [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows]
    return json.dumps(told, sort_keys=True, default=str)


def varied(settings: list[dict[str, Any]]) -> list[str]:
    """Label each run by the settings in which the runs differ: ``server.lr=0.1``.

    Runs of another mode lack some settings: a setting is compared among the runs that have it.
    """
    every = dict.fromkeys(key for s in settings for key in s)
    having = {key: [s[key] for s in settings if key in s] for key in every}
    keys = [key for key, values in having.items() if any(v != values[0] for v in values)]
    return [", ".join(f"{k}={_short(s[k])}" for k in keys if k in s) for s in settings]


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Flatten everything but attack, defence and seed, one table deep."""
    flat: dict[str, Any] = {}
    for key, value in experiment.to_dict().items():
        if key in ("attack", "rule", "pre", "seed"):
            continue
        if key == "redundancy":  # name and detection are the defence's, the adversary the attack's
            value = {k: v for k, v in value.items() if k in ("replication", "tolerance", "window")}
        if experiment.mode == key == "ensemble":
            value = {k: v for k, v in value.items() if k != "paradigm"}  # it names the defence
        # A table with a name is a spec, and so one value; any other holds settings.
        nested = value if isinstance(value, dict) and "name" not in value else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): v for name, v in nested.items()}
    return flat


def _short(value: Any) -> str:
    return value.get("name", "none") if isinstance(value, dict) else str(value)


def distinct(chains: list[list[dict[str, Any]]]) -> list[str]:
    """Label chains of specs by their names, plus every setting in which namesakes differ."""
    namesakes: dict[tuple[str, ...], list[list[dict[str, Any]]]] = {}
    for chain in chains:
        namesakes.setdefault(tuple(spec["name"] for spec in chain), []).append(chain)

    def label(chain: list[dict[str, Any]]) -> str:
        group = namesakes[tuple(spec["name"] for spec in chain)]
        parts = []
        for place, spec in enumerate(chain):
            others = [other[place] for other in group]
            # No setting is equal to ``...``: one that a namesake lacks counts as different.
            varied = [k for k in spec if any(o.get(k, ...) != spec[k] for o in others)]
            parts.append(" ".join([spec["name"], *(f"{k}={spec[k]}" for k in varied)]))
        return "+".join(parts)

    return [label(chain) for chain in chains]


def load(folders: Iterable[Path]) -> Results:
    """Read run folders back."""
    return Results(
        tuple(
            (from_dict(read(path / "config.toml")), read_rows(path / "rounds.jsonl"))
            for path in folders
        )
    )
