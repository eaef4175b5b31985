"""The sections that every report has: results, curves, what the attackers got, data, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from markupsafe import Markup

from experiments.report import plots
from experiments.report.contents import (
    Gathered,
    attackers,
    byzantine,
    costs,
    measures,
    refusals,
    shares,
)
from experiments.report.heat import heat_table, scale
from experiments.report.parts import Panel, Section, csv_link, table_of

PERCENT = ("attack_success", "bypass")
MOST_CLIENTS = 60  # rows; more of them could not be told apart


def final(gathered: Gathered) -> Section:
    """Show the table: defence against attack, the gaps, the score."""
    results = gathered.results
    means, halves, shown = results.table(), results.interval(), results.headline
    seeds = len({e.seed for e in gathered.experiments})
    several = f", mean over {seeds} seeds with the 95 % interval" if seeds > 1 else ""
    words, unit = shown.column.replace("_", " "), " in %" if shown.is_share else ""
    lost = gaps(means, shown.best)
    lead = f"Test {words} after the last round{unit}{several}; the darker, the "
    lead += "better. " if shown.best == "max" else "larger. "
    lead += "The score of a defence is its worst column, right of the line."
    if lost is not None:
        lead += (
            " Then what it loses: to its worst attack, and without one, against the defence that is"
            " best there."
        )
    heat = heat_table(means, halves, gaps=lost, **scale(shown, means))
    return Section(
        f"Final {words}",
        lead,
        table=Markup(f"<div class='wide'>{heat}</div>"),
        csv=csv_link(means if lost is None else means.join(lost)),
    )


def gaps(means: pd.DataFrame, best: str) -> pd.DataFrame | None:
    """Return what each defence loses to its worst attack, and without one; None without "none"."""
    # With "none" and the score alone nobody attacked.
    if "none" not in means or means.shape[1] < 3:
        return None
    sign, clean = (1 if best == "max" else -1), means["none"]
    top = clean.max() if best == "max" else clean.min()
    lost = {"lost to worst": means["worst"] - clean, "lost without": clean - top}
    return pd.DataFrame({name: sign * column for name, column in lost.items()})


def curves(gathered: Gathered, frame: pd.DataFrame) -> list[Section]:
    """Draw accuracy over rounds, then every other measure that the rows hold."""
    # A regression has no accuracy.
    first = [column for column in ("accuracy",) if column in frame] or ["loss"]
    found = [over_rounds(gathered, frame, column) for column in first]
    return found + [over_rounds(gathered, frame, c, minor=True) for c in measures(frame)]


def over_rounds(
    gathered: Gathered, frame: pd.DataFrame, column: str, *, minor: bool = False
) -> Section:
    """Draw one measure over the rounds: a panel an attack, a line a defence."""
    known = frame.dropna(subset=[column])
    table = known.pivot_table(
        index="round", columns=["attack", "defence"], values=column, sort=False
    )
    table.columns = [f"{attack} / {defence}" for attack, defence in table.columns]
    words = column.replace("_", " ")
    return Section(
        f"{words.capitalize()} over rounds",
        "A line is the mean over the seeds, its band reaches from the lowest to the highest.",
        panels=panels(gathered, known, column),
        lines=True,
        behind=table_of(table.round(4)),
        csv=csv_link(table),
        minor=minor,
    )


def panels(
    gathered: Gathered,
    known: pd.DataFrame,
    column: str,
    *,
    log: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Panel, ...]:
    """Draw a measure over rounds, a panel an attack, all with the same axes.

    Parameters
    ----------
    marks
        Defence -> a value that is drawn as a dotted line of its colour.
    """
    order = gathered.results.order
    percent = column.endswith("accuracy") or column in PERCENT
    factor, words = (100 if percent else 1), column.replace("_", " ")
    values = [*(known[column] * factor), *marks.values()]
    x = plots.fitted("round", [0, *known["round"]], zero=True)
    y = plots.fitted(f"{words} (%)" if percent else words, values, log=log)
    # Fixed ends: shares can be compared from panel to panel, and from page to page.
    y = plots.Axis(y.label, 0, 100) if percent else y
    found = []
    for attack in order.attacks:
        part = known[known["attack"] == attack]
        lines = [
            _line(part[part["defence"] == name], column, factor, name, place, marks.get(name))
            for place, name in enumerate(order.defences)
        ]
        lines = [line for line in lines if len(line.x)]
        if lines:
            picture = plots.chart(lines, x, y, unit=" %" if percent else "")
            found.append(Panel(f"attack: {attack}", picture, attack))
    return tuple(found)


def _line(
    part: pd.DataFrame, column: str, factor: int, name: str, place: int, mark: float | None
) -> plots.Line:
    groups = part.groupby("round")[column]
    mean, low, high = groups.mean() * factor, groups.min() * factor, groups.max() * factor
    x, y = mean.index.tolist(), mean.tolist()
    # The band of a single seed would be a second line over the first.
    if not bool((high > low).any()):
        return plots.Line(name, place, x, y, mark=mark)
    return plots.Line(name, place, x, y, low.tolist(), high.tolist(), mark)


def attackers_got(gathered: Gathered, frame: pd.DataFrame) -> Section | None:
    """Show the attackers' share of the weight, and how far they moved the aggregate."""
    found = attackers(frame)
    if found.empty:
        return None
    order = gathered.results.order
    bypass, deviation = (
        found[column]
        .unstack("attack")
        .reindex(index=list(order.defences), columns=list(order.attacks))
        # Columns without a value ("none": nobody attacks), then rows (rules without weights).
        .dropna(axis=1, how="all")
        .dropna(axis=0, how="all")
        for column in ("bypass", "deviation")
    )
    far = float(np.nanmax(deviation.to_numpy(), initial=0))
    table = (
        "<div class='pair'><div><h3>Bypass</h3><p>The attackers' share of the weight: 0, all "
        "rejected; their share of the clients, all let through. Not for rules that take values "
        f"apart from their senders.</p>{heat_table(bypass, low=0, high=1, unit=1, digits=2)}</div>"
        "<div><h3>Deviation</h3><p>How far the aggregate is from the honest mean, in honest "
        f"spreads.</p>{heat_table(deviation, low=0, high=far, unit=1, digits=2)}</div></div>"
    )
    return Section(
        "What the attackers got",
        "Means over all rounds and seeds in which the attackers' replies counted.",
        table=Markup(table),
        behind=table_of(found.round(4).reset_index().set_index("defence")),
        csv=csv_link(found),
    )


def replies_refused(gathered: Gathered) -> Section | None:
    """Count the replies that lost their vote, and why."""
    found = refusals(gathered.results)
    if found.empty:
        return None
    return Section(
        "Replies that lost their vote",
        "A malformed reply costs its sender the vote of that round; with too few votes the model "
        "is kept.",
        table=table_of(found.set_index("defence")),
        csv=csv_link(found),
    )


def who_holds_what(gathered: Gathered, data_root: str | None) -> Section:
    """Show the labels of each client."""
    experiment = gathered.experiments[0]
    title, name = "Who holds which data", experiment.partition["name"]
    counts = shares(experiment, data_root)
    if isinstance(counts, str):
        return Section(title, f"Not drawn, the data set is not at hand: {counts}", minor=True)
    bad = byzantine(experiment)
    if not bad:
        bad = next((b for e in gathered.experiments if (b := byzantine(e))), ())
    seen = counts.iloc[:MOST_CLIENTS]
    lead = f"Partition {name}, seed {experiment.seed}"
    if len({(str(e.partition), e.clients, e.seed) for e in gathered.experiments}) > 1:
        lead += " (that of the first run)"
    lead += f", {len(seen)} of {len(counts)} clients" if len(seen) < len(counts) else ""
    most = int(counts.to_numpy().max(initial=0))
    lead += f": a row is a client, the darker the more of a label, up to {most}."
    picture = plots.matrix(
        plots.Matrix(
            [str(i) for i in seen.index],
            [i in bad for i in seen.index],
            [str(c) for c in seen.columns],
            letters(seen, most),
            "label" if seen.shape[1] > 1 else "examples",
        ),
        SHADES,
    )
    return Section(
        title,
        lead + (" ◆: Byzantine." if bad else ""),
        panels=(Panel("", picture),),
        behind=table_of(counts.rename(columns=lambda label: f"label {label}")),
        csv=csv_link(counts),
        minor=True,
        wide=True,
    )


SHADES = {"0": "#f3f7f6", "1": "#cfe3df", "2": "#9cc7bf", "3": "#62a398", "4": "#146860"}


def letters(counts: pd.DataFrame, most: int) -> list[str]:
    """Write each row of counts as shades, 0 to 4 of ``most``."""
    top = max(1, most)
    # Rounded up: one image is not shown as none.
    return ["".join(str(-(-4 * int(v) // top)) for v in row) for row in counts.to_numpy()]


def time_and_bytes(frame: pd.DataFrame, defences: Sequence[str]) -> Section | None:
    """Say what a round costs."""
    if "seconds" not in frame:
        return None
    table = costs(frame)
    table = table.reindex([name for name in defences if name in table.index])
    return Section(
        "Time and bytes a round",
        "Wall time of whole rounds on the machine named below, training and evaluation included; "
        "bytes are the numbers that travel, without the envelope.",
        table=table_of(table.round(4)),
        csv=csv_link(table),
    )
