"""Results of one run or of a sweep: frames, tables, pictures."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from experiments import tables
from experiments.comparisons import End, Merged, differences, first_rounds, steadiness
from experiments.labels import names_of
from experiments.tables import final
from fedrobust.experiment.load import from_dict, read
from fedrobust.experiment.schema import Experiment
from fedrobust.plugins import Part
from fedrobust.runs.folder import read_rows
from fedrobust.training.headline import ACCURACY, Headline, headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from experiments.worst_case import WorstCase


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
        return pd.DataFrame(
            {"run": e.run_id, **names, "seed": e.seed, **row}
            for (e, rows), names in zip(self.runs, self.names, strict=True)
            for row in rows
        )

    @property
    def accuracy(self) -> float:
        """Final clean accuracy in [0, 1], mean over the runs."""
        return statistics.fmean(final(rows) for _, rows in self.runs)

    @property
    def score(self) -> float:
        """Final value of what tables show, see ``headline``: mean over the runs."""
        return statistics.fmean(final(rows, self.headline.column) for _, rows in self.runs)

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

        The defence with the best worst case comes first, and of the attacks ``none``, here and
        wherever results are shown. Without an accuracy it is the first metric, see ``headline``.

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
        means = self._pivot("mean").assign(worst=self.order.worst)
        if format is None:
            return means
        shares = self.headline.is_share
        return tables.render(means, self.interval(), format=format, percent=shares)

    def spread(self) -> pd.DataFrame:
        """Standard deviation over seeds (ddof 1) of each cell; NaN for a single seed."""
        return self._pivot("std")

    def interval(self) -> pd.DataFrame:
        """Half-width of the 95 % t-interval over seeds of each cell of ``table``.

        The column ``worst`` repeats that of the attack which is worst on average.
        """
        means, halves = self._pivot("mean"), self._pivot(tables.half_width)
        better = self.headline.best
        worst = [tables.at_worst(halves.loc[name], row, better) for name, row in means.iterrows()]
        return halves.assign(worst=worst)

    @property
    def auto(self) -> pd.DataFrame:
        """The worst case of each defence that ran under every member of ``attack = "auto"``.

        One line a defence, the lowest first, with ``WorstCase``'s fields; empty without any.
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
        merged = Merged()
        for one in results:
            running = one.running or (None,) * len(one.runs)
            for place, run in enumerate(one.runs):
                merged.take(run, one.models[place] if modelled else None, running[place])
        parts = {(p.kind, p.name): p for one in results for p in one.parts}
        return Results(
            tuple(merged.runs), tuple(merged.models), tuple(merged.running), tuple(parts.values())
        )

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
        return differences(self._finals(), baseline)

    def stability(self, last: int = 5) -> pd.DataFrame:
        """Say how steady each run ended: of its ``last`` evaluations the mean, spread and ends.

        Returns
        -------
        One line a run: attack, defence, seed, ``mean``, ``std`` (ddof 1), ``lowest``, ``highest``.
        """
        return steadiness(self._ends(last))

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
        return first_rounds(self._ends(None), target, hold=hold, sign=sign)

    def _ends(self, last: int | None) -> Iterator[End]:
        """Yield each run's names with what was measured, by round."""
        column = self.headline.column
        for (e, rows), names in zip(self.runs, self.names, strict=True):
            found = pd.Series({row["round"]: row[column] for row in rows if column in row})
            yield {**names, "seed": e.seed}, found if last is None else found.iloc[-last:]

    def state_dict(self, run: int = 0, *, data_root: str | None = None) -> dict[str, Tensor]:
        """Return a run's final model as a PyTorch state_dict: names, parameters and buffers.

        Raises
        ------
        ConfigError
            If the models were not kept.
        """
        from experiments.export import of_run

        return of_run(self, run, data_root=data_root)

    def plot(self, *, rounds: bool = False) -> Figure:
        """Draw the heat map of the table for several runs; for one, or with ``rounds``, curves.

        Curves are means over the seeds, a panel an attack, a line a defence.
        """
        from experiments.pictures import curves, heat_map

        several = len({tuple(names.values()) for names in self.names}) > 1
        if several and not rounds:
            return heat_map(self.table(), self.headline, self.interval())
        return curves(self.frame, self.headline, list(self.order.defences))

    def report(self, path: str | Path | None = None, *, data_root: str | None = None) -> str:
        """Return the report, one HTML page that needs nothing else; write it to ``path`` if given.

        ``data_root`` holds the full data sets, for the section on who holds which data.
        """
        from experiments.report.contents import Gathered
        from experiments.report.page import render

        page = render(Gathered.of(self), data_root=data_root)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def save(self, folder: str | Path, *, data_root: str | None = None) -> Path:
        """Write the run folders, the table, the picture and the report into a folder; return it.

        ``fedrobust report`` and ``experiments.results.load`` read the run folders back; where the
        runs used objects of yours, only with the file that holds them (``--use``).
        """
        from experiments.keeping import keep

        return keep(self, Path(folder), data_root=data_root)

    def __repr__(self) -> str:
        what = self.headline.column
        return f"Results of {len(self.runs)} run(s), final {what}:\n{self.table().round(4)}"

    def _repr_html_(self) -> str:
        from experiments.report.heat import shown

        return shown(self)

    def _finals(self) -> pd.DataFrame:
        column = self.headline.column
        return pd.DataFrame(
            {**names, "seed": e.seed, "value": final(rows, column)}
            for (e, rows), names in zip(self.runs, self.names, strict=True)
        )

    @cached_property
    def order(self) -> tables.Order:
        """In which order defences and attacks are shown, and the worst cases."""
        return tables.order(tables.pivot(self._finals(), "mean"), self.headline.best)

    def _pivot(self, statistic: Any) -> pd.DataFrame:
        found = tables.pivot(self._finals(), statistic)
        return found.reindex(index=self.order.defences, columns=self.order.attacks)

    @property
    def names(self) -> list[dict[str, str]]:
        """Each run's ``attack`` and ``defence``, with the settings in which namesakes differ."""
        return names_of([experiment for experiment, _ in self.runs])


def load(folders: Iterable[Path]) -> Results:
    """Read run folders back."""
    return Results(
        tuple(
            (from_dict(read(path / "config.toml")), read_rows(path / "rounds.jsonl"))
            for path in folders
        )
    )
