"""Sections that set the result against the attackers' number, heterogeneity, and the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from experiments import tables
from experiments.labels import distinct
from experiments.report import plots
from experiments.report.contents import Gathered
from experiments.report.parts import Panel, Section, csv_link, table_of
from fedrobust.experiment.schema import Experiment

Where = Callable[[Experiment], Any]


def against_f(gathered: Gathered) -> Section | None:
    """Draw the final value against the number of attackers, where the runs have several."""
    ends = _ends(gathered, lambda e: e.byzantine)
    if ends["at"].nunique() < 2:
        return None
    clients = {e.clients for e in gathered.experiments}
    of = f" of {clients.pop()} clients" if len(clients) == 1 else ""
    x = plots.fitted("Byzantine clients", ends["at"].tolist())
    return _drawn(gathered, ends, "f", f"Byzantine clients{of}", x)


def against_heterogeneity(gathered: Gathered) -> Section | None:
    """Draw the final value against how unevenly data are spread, where the runs have several."""
    known = {_partition(e): _unequal(e) for e in gathered.experiments}
    words = sorted(known, key=known.__getitem__)
    if len(words) < 2:
        return None
    place = {word: i for i, word in enumerate(words)}
    ends = _ends(gathered, lambda e: place[_partition(e)])
    # Room beside the first and the last word, which stand at 0 and n - 1.
    x = plots.Axis("partition, from alike to unlike", -0.3, len(words) - 0.7, words=words)
    return _drawn(gathered, ends, "heterogeneity", "the partition of the data", x)


def cost_against_worst(gathered: Gathered, frame: pd.DataFrame) -> Section | None:
    """Draw each defence's worst case against the seconds of its rounds."""
    results, shown = gathered.results, gathered.results.headline
    trained = frame[frame["round"] > 0]
    if "seconds" not in trained:
        return None
    seconds = trained.groupby("defence")["seconds"].median()
    order = [name for name in results.order.defences if name in seconds]
    worst = results.order.worst
    if len(order) < 2 or worst[order].notna().sum() < 2:
        return None
    factor = 100 if shown.is_share else 1
    lines = [
        # Its place on the whole page, so that it has the same colour everywhere.
        plots.Line(name, results.order.defences.index(name), [float(seconds[name])],
                   [float(worst[name]) * factor])
        for name in order
    ]  # fmt: skip
    x = plots.fitted("seconds a round (median)", [float(seconds[n]) for n in order], zero=True)
    unit = " (%)" if shown.is_share else ""
    label = f"worst {shown.column.replace('_', ' ')}{unit}"
    y = plots.fitted(label, [line.y[0] for line in lines])
    table = pd.DataFrame({"seconds a round": seconds[order], label: worst[order] * factor})
    return Section(
        "Cost against worst case",
        "A point is a defence: how long its rounds take on the machine below, training included, "
        "and what it keeps under its worst attack. Up and left is better."
        if shown.best == "max"
        else "A point is a defence: the time of its rounds, and its worst case.",
        panels=(Panel("", plots.chart(lines, x, y, unit=" %" if unit else "", joined=False)),),
        lines=True,
        behind=table_of(table.rename_axis("defence").round(4)),
        csv=csv_link(table),
    )


def _ends(gathered: Gathered, where: Where) -> pd.DataFrame:
    """Return each run's attack, defence without what varies, place, and final value."""
    results = gathered.results
    column = results.headline.column
    names = distinct([[_without_f(s) for s in e.stages] for e in gathered.experiments])
    attacks = distinct([[e.attack] for e in gathered.experiments])
    return pd.DataFrame(
        {"attack": attack, "defence": name, "at": where(e), "value": tables.final(rows, column)}
        for (e, rows), name, attack in zip(results.runs, names, attacks, strict=True)
    )


def _without_f(stage: dict[str, Any]) -> dict[str, Any]:
    """Leave out f, which follows the attackers' number and would tell each of them apart."""
    return {key: value for key, value in stage.items() if key != "f"}


def _drawn(gathered: Gathered, ends: pd.DataFrame, what: str, words: str, x: plots.Axis) -> Section:
    shown = gathered.results.headline
    factor = 100 if shown.is_share else 1
    label = shown.column.replace("_", " ") + (" (%)" if shown.is_share else "")
    fitted = plots.fitted(label, [*(ends["value"] * factor)])
    y = plots.Axis(label, 0, 100) if shown.is_share else fitted
    defences = list(dict.fromkeys(ends["defence"]))
    # False comes before True: "none" first, the others in their order.
    attacks = sorted(dict.fromkeys(ends["attack"]), key=lambda name: name != "none")
    panels = [
        Panel(f"attack: {attack}", plots.chart(lines, x, y, unit=" %" if shown.is_share else ""))
        for attack in attacks
        if (lines := _lines(ends[ends["attack"] == attack], defences, factor))
    ]
    table = ends.pivot_table(index=["attack", "defence"], columns="at", values="value", sort=False)
    if x.words:
        table.columns = [x.words[int(i)] for i in table.columns]
    return Section(
        f"{shown.column.replace('_', ' ').capitalize()} against {what}",
        f"Final test {shown.column.replace('_', ' ')} against {words}: mean over the runs of a "
        f"place, with the range. Colours: {', '.join(_coloured(defences))}.",
        panels=tuple(panels),
        behind=table_of(table.round(4).reset_index().set_index("attack")),
        csv=csv_link(table),
    )


def _coloured(defences: Sequence[str]) -> list[str]:
    """Name the colours of these curves, whose defences are told apart by less than the page's."""
    words = ("blue", "vermilion", "green", "pink", "orange", "sky blue", "black", "brown")
    return [f"{name} {words[i % len(words)]}" for i, name in enumerate(defences)]


def _lines(ends: pd.DataFrame, defences: Sequence[str], factor: int) -> list[plots.Line]:
    found = []
    for place, name in enumerate(defences):
        at = ends[ends["defence"] == name].groupby("at")["value"]
        mean, low, high = at.mean() * factor, at.min() * factor, at.max() * factor
        if len(mean):
            band = (low.tolist(), high.tolist()) if bool((high > low).any()) else ((), ())
            xs = [float(x) for x in mean.index]
            found.append(plots.Line(name, place, xs, mean.tolist(), *band))
    return found


def _partition(experiment: Experiment) -> str:
    settings = [f"{v:g}" if isinstance(v, float) else str(v)
                for k, v in experiment.partition.items() if k != "name"]  # fmt: skip
    return " ".join([experiment.partition["name"], *settings])


def _unequal(experiment: Experiment) -> tuple[float, str]:
    """Return how unlike the clients' data are: iid first, then Dirichlet by falling alpha."""
    spec = experiment.partition
    if spec["name"] == "iid":
        return (0.0, "")
    if isinstance(spec.get("alpha"), int | float):
        return (1.0 / (1e-9 + spec["alpha"]), spec["name"])
    if isinstance(spec.get("similarity"), int | float):
        return (1.0 - spec["similarity"], spec["name"])
    # Any other partition comes after these, by its name.
    return (1e12, _partition(experiment))
