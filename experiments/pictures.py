"""Pictures of results; drawn without a display."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from fedrobust.training.tasks import ACCURACY, Headline


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
    figure = Figure(figsize=(1.6 + 1.1 * columns, 1.4 + 0.55 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        table.to_numpy() * factor,
        cmap="RdYlBu" if better else "RdYlBu_r",  # told apart by the colour-blind too
        aspect="auto",
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


def curves(frame: pd.DataFrame, shown: Headline = ACCURACY) -> Figure:
    """Draw test accuracy, or what stands for it, over rounds: one line a run."""
    column, factor = shown.column, 100 if shown.is_share else 1
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    measured = frame.dropna(subset=[column])
    for (attack, defence, seed), part in measured.groupby(["attack", "defence", "seed"]):
        label = f"{attack} / {defence}, seed {seed}"
        axes.plot(part["round"], part[column] * factor, label=label)
    unit, ends = (" (%)", (0, 100)) if shown.is_share else ("", None)
    axes.set(xlabel="round", ylabel=f"test {column}{unit}", ylim=ends)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


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
