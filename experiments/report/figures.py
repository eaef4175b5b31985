"""The report's figures as inline SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers; dashes tell when they run out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#14201E", "#8A6D3B")
DASHES = ("-", "--", ":", "-.")
PANEL = (4.4, 2.9)
MOST_CLIENTS = 60  # bars; more of them could not be told apart
STYLE: Any = {
    # Text stays text: it can be searched and read aloud, and takes the page's own font.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def style(place: int) -> tuple[str, str]:
    """Return colour and dash of the line at a place; no two of the first 32 are alike."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def over_rounds(
    frame: pd.DataFrame,
    column: str,
    defences: Sequence[str],
    salt: str,
    *,
    log: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Draw a measure over rounds, a line a defence: mean over seeds, band from least to most.

    Parameters
    ----------
    log
        Whether the axis is logarithmic; zeros are left out.
    marks
        Defence -> a value that is drawn as a dotted line of its colour.
    """

    def draw(axes: Axes) -> None:
        percent = column.endswith("accuracy") or column in ("attack_success", "bypass")
        factor = 100 if percent else 1
        known = frame.dropna(subset=[column])
        for place, defence in enumerate(defences):
            part = known[known["defence"] == defence].groupby("round")[column]
            if not len(part):
                continue
            colour, dash = style(place)
            mean, low, high = part.mean() * factor, part.min() * factor, part.max() * factor
            axes.plot(mean.index, mean, color=colour, linestyle=dash, linewidth=1.8)
            axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
            if defence in marks:
                axes.axhline(marks[defence], color=colour, linestyle=":", linewidth=1.2)
        if log and bool((known[column] > 0).any()):
            axes.set_yscale("log", nonpositive="mask")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        words = column.replace("_", " ")
        axes.set(xlabel="round", ylabel=f"{words} (%)" if percent else words)
        if percent:
            axes.set_ylim(0, 100)

    return svg(draw, PANEL, salt)


def labels_per_client(counts: pd.DataFrame, byzantine: Sequence[int], salt: str) -> str:
    """Draw each client's images by label; a Byzantine client's number is red."""
    shown = counts.iloc[:MOST_CLIENTS]

    def draw(axes: Axes) -> None:
        palette = (
            matplotlib.colormaps["tab10"]
            if shown.shape[1] <= 10
            else (matplotlib.colormaps["viridis"].resampled(shown.shape[1]))
        )
        left = pd.Series(0, index=shown.index)
        for place, label in enumerate(shown.columns):
            axes.barh(shown.index, shown[label], left=left, color=palette(place), height=0.85)
            left += shown[label]
        axes.set(xlabel="training images, one colour a label", ylabel="client")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_yticks(list(shown.index), [str(i) for i in shown.index], fontsize=8)
        for tick, client in zip(axes.get_yticklabels(), shown.index, strict=True):
            if client in byzantine:
                tick.set(color="#B00020", fontweight="bold")

    return svg(draw, (7.0, 1.2 + 0.17 * len(shown)), salt)


def seconds_per_round(frame: pd.DataFrame, defences: Sequence[str], salt: str) -> str:
    """Draw the spread of seconds per round, one box a defence."""
    trained = frame[(frame["round"] > 0) & frame["seconds"].notna()]

    def draw(axes: Axes) -> None:
        values = [trained.loc[trained["defence"] == d, "seconds"].tolist() for d in defences]
        axes.boxplot(
            values,
            orientation="horizontal",
            tick_labels=list(defences),
            showfliers=False,
            medianprops={"color": COLOURS[1]},
        )
        axes.invert_yaxis()
        axes.set(xlabel="seconds a round (box: quartiles; whiskers: 1.5 boxes)")
        axes.set_xlim(left=0)

    return svg(draw, (7.0, 1.1 + 0.34 * len(defences)), salt)


def svg(draw: Callable[[Axes], None], size: tuple[float, float], salt: str) -> str:
    """Return a figure as an SVG element that takes the width of its place.

    The same input gives the same bytes; ``salt`` keeps the ids of one page's figures apart.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
