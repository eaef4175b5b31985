"""Pictures of results; drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import COLOURS
from fedrobust.training.headline import ACCURACY, Headline


def heat_map(
    table: pd.DataFrame, shown: Headline = ACCURACY, halves: pd.DataFrame | None = None
) -> Figure:
    """Draw a defence x attack table; the last column is the worst case, the best of it on top.

    Parameters
    ----------
    table
        Means, shares in [0, 1] where ``shown`` is one; its last column is called ``worst``.
    halves
        Half-widths of their intervals, of the same shape; NaN draws none.
    """
    better = shown.best == "max"
    table = table.sort_values("worst", ascending=not better)
    halves = None if halves is None else halves.reindex_like(table)
    if "none" in table:
        table = table[["none", *(name for name in table if name != "none")]]
    factor = 100 if shown.is_share else 1
    rows, columns = table.shape
    names = 0.08 * max(map(len, map(str, table.index)), default=0)  # inches, about
    figure = Figure(figsize=(1 + names + 1.1 * columns, 1.4 + 0.55 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        table.to_numpy() * factor,
        cmap="RdYlBu" if better else "RdYlBu_r",  # told apart by the colour-blind too
        aspect="auto",
        # Fixed ends: one colour means one accuracy in all pictures, whatever else is in them.
        vmin=10 if shown.is_share else None,
        vmax=90 if shown.is_share else None,
    )
    axes.set_xticks(range(columns), list(table.columns), rotation=30, ha="right")
    axes.set_yticks(range(rows), list(table.index))
    for i, name in enumerate(table.index):
        for j, column in enumerate(table.columns):
            half = float("nan") if halves is None else halves.at[name, column]
            axes.text(j, i, _cell(table.at[name, column], half, shown), ha="center", va="center")
    axes.axvline(columns - 1.5, color="black", linewidth=1.5)
    several = halves is not None and halves.notna().any(axis=None)
    unit = " (%)" if shown.is_share else ""
    interval = ", mean and 95 % interval over seeds" if several else ""
    axes.set_title(f"final test {shown.column}{unit}{interval}")
    figure.colorbar(image, ax=axes)
    return figure


def _cell(mean: float, half: float, shown: Headline) -> str:
    factor = 100 if shown.is_share else 1
    written = f"{mean * factor:.1f}" if shown.is_share else f"{mean:.3g}"
    if half != half:
        return written
    return f"{written}\n± {half * factor:.1f}" if shown.is_share else f"{written}\n± {half:.2g}"


def curves(frame: pd.DataFrame, shown: Headline = ACCURACY, defences: Sequence[str] = ()) -> Figure:
    """Draw test accuracy, or what stands for it, over rounds: a panel an attack, a line a defence.

    A line is the mean over the seeds, its band reaches from the lowest to the highest.

    Parameters
    ----------
    defences
        In which order they get their colours; as they come where empty.
    """
    factor = 100 if shown.is_share else 1
    measured = frame.dropna(subset=[shown.column])
    attacks = sorted(measured["attack"].unique(), key=lambda name: name != "none")
    columns = min(3, max(1, len(attacks)))
    rows = -(-len(attacks) // columns) or 1
    figure = Figure(figsize=(3.4 * columns + 1.4, 2.8 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    names = list(defences) or list(measured["defence"].unique())
    for attack, axes in zip(attacks, panels, strict=False):
        for place, name in enumerate(names):
            part = measured[(measured["attack"] == attack) & (measured["defence"] == name)]
            if len(part):
                _curve(axes, part.groupby("round")[shown.column], factor, name, place)
        axes.set_title(f"attack: {attack}", fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[len(attacks) :]:
        axes.axis("off")
    for axes in list(figure.axes)[max(0, len(attacks) - columns) : len(attacks)]:
        axes.set_xlabel("round")
    figure.supylabel(f"test {shown.column}" + (" (%)" if shown.is_share else ""), fontsize="medium")
    if shown.is_share:
        figure.axes[0].set_ylim(0, 100)
    lines, labels = _legend(figure)
    figure.legend(lines, labels, loc="outside lower center", ncols=min(4, len(labels) or 1))
    return figure


def _curve(axes: Axes, groups: Any, factor: int, name: str, place: int) -> None:
    colour, dash = style(place)
    mean, low, high = groups.mean() * factor, groups.min() * factor, groups.max() * factor
    axes.plot(mean.index, mean, color=colour, linestyle=dash, label=name)
    axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure) -> tuple[list[Any], list[str]]:
    """Return each defence once, with its line."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, line)
    return list(found.values()), list(found)


DASHES = ("-", "--", ":", "-.")


def style(place: int) -> tuple[str, str]:
    """Return colour and dash of the line at a place; no two of the first 32 are alike."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def detection(frame: pd.DataFrame) -> Figure:
    """Draw who was found and which files were wrong under redundancy schemes, over rounds.

    Above precision (dashed) and recall of the flagged workers, below the share of wrong files and,
    dotted, the bound of the scheme. Precision is not drawn in rounds in which nobody is flagged.
    """
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    known = frame[(frame["round"] > 0) & frame["wrong_files"].notna()]
    for number, ((attack, defence, seed), part) in enumerate(
        known.groupby(["attack", "defence", "seed"], sort=False)
    ):
        line = {"color": f"C{number % 10}", "alpha": 0.8}
        above.plot(part["round"], part["recall"] * 100, **line)
        above.plot(part["round"], part["precision"] * 100, linestyle="--", **line)
        label = f"{attack} / {defence}, seed {seed}"
        below.plot(part["round"], part["wrong_files"] * 100, label=label, **line)
        below.plot(part["round"], part["wrong_bound"] * 100, linestyle=":", **line)
    above.set(ylabel="recall, precision (%)", ylim=(-5, 105))
    below.set(xlabel="round", ylabel="wrong files (%)", ylim=(0, None))
    below.legend(fontsize="small")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure
