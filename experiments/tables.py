"""Tables of results for people and papers: text, Markdown, LaTeX; means with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import special

from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import suggest
from fedrobust.text import printable

CONFIDENCE = 0.95


def final(rows: Sequence[Mapping[str, Any]], column: str = "accuracy") -> float:
    """Return the last measured value of a run; NaN before the first, and for a list of numbers."""
    last = next((row[column] for row in reversed(rows) if column in row), float("nan"))
    return last if isinstance(last, int | float) else float("nan")


def half_width(values: Sequence[float]) -> float:
    """Return the half-width of the 95 % t-interval of the mean; NaN for fewer than two values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return math.nan
    quantile = float(special.stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(known) / math.sqrt(len(known))


@dataclass(frozen=True)
class Order:
    """In which order results are shown, everywhere: the best worst case first, ``none`` first."""

    defences: tuple[str, ...]
    attacks: tuple[str, ...]
    worst: pd.Series


def order(means: pd.DataFrame, best: str) -> Order:
    """Put a defence x attack table into order; equal worst cases stay as they came.

    Parameters
    ----------
    best
        "max" or "min": which values are good.
    """
    worst = means.max(axis=1) if best == "min" else means.min(axis=1)
    worst = worst.sort_values(ascending=best == "min", kind="stable")
    attacks = sorted(means.columns, key=lambda name: name != "none")  # stable: the rest as it came
    return Order(tuple(worst.index), tuple(attacks), worst)


def pivot(finals: pd.DataFrame, statistic: Any) -> pd.DataFrame:
    """Bring lines of defence, attack and value into a table, in the order in which they came."""
    # Nothing is dropped: an attack under which nothing was measured keeps its column.
    table = finals.pivot_table(
        index="defence", columns="attack", values="value", aggfunc=statistic, dropna=False
    )
    # Pandas has sorted both by name.
    return table.reindex(index=finals["defence"].unique(), columns=finals["attack"].unique())


def at_worst(values: pd.Series, means: pd.Series, best: str) -> float:
    """Return the value that belongs to the worst mean; NaN where nothing was measured."""
    if not means.notna().any():
        return math.nan
    return float(values[means.idxmax() if best == "min" else means.idxmin()])


def cells(
    means: pd.DataFrame, intervals: pd.DataFrame, *, plus_minus: str = "±", percent: bool = True
) -> pd.DataFrame:
    """Write fractions as per cent: ``85.8 ± 0.2``, or ``85.8`` where there is no interval.

    Without ``percent`` values are written as they are, with four digits.
    """

    def number(value: float) -> str:
        return f"{value * 100:.1f}" if percent else f"{value:.4g}"

    def cell(mean: float, half: float) -> str:
        if math.isnan(mean):
            return "-"
        return number(mean) + ("" if math.isnan(half) else f" {plus_minus} {number(half)}")

    rows = [
        [cell(m, h) for m, h in zip(mean_row, half_row, strict=True)]
        for mean_row, half_row in zip(means.to_numpy(), intervals.to_numpy(), strict=True)
    ]
    return pd.DataFrame(rows, index=means.index, columns=means.columns)


def render(
    means: pd.DataFrame, intervals: pd.DataFrame, *, format: str, percent: bool = True
) -> str:
    """Write a defence x attack table of fractions in one of ``FORMATS``.

    Raises
    ------
    ConfigError
        For an unknown format.
    """
    if format not in FORMATS:
        raise ConfigError([f"unknown format {format!r}; {suggest(format, list(FORMATS))}"])
    return FORMATS[format](means, intervals, percent)


def markdown(means: pd.DataFrame, intervals: pd.DataFrame, percent: bool = True) -> str:
    """Write a pipe table, as GitHub and notebooks read it."""
    return pipes(cells(means, intervals, percent=percent))


def pipes(table: pd.DataFrame) -> str:
    """Write any frame of words as a Markdown pipe table, its index as the first column."""
    head = ["", *map(_pipe, table.columns)]
    body = [
        [_pipe(name), *map(_pipe, row)] for name, row in zip(table.index, table.values, strict=True)
    ]
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex(means: pd.DataFrame, intervals: pd.DataFrame, percent: bool = True) -> str:
    """Write a ``tabular`` for booktabs; the largest mean of each column is bold."""
    words = cells(means, intervals, plus_minus=r"$\pm$", percent=percent)
    best = means.max()
    lines = [
        r"\begin{tabular}{l" + "r" * len(means.columns) + "}",
        r"\toprule",
        " & ".join(["defence", *map(_tex, means.columns)]) + r" \\",
        r"\midrule",
    ]
    for name in means.index:
        row = [
            rf"\textbf{{{words.at[name, column]}}}"
            if means.at[name, column] == best[column]
            else words.at[name, column]
            for column in means.columns
        ]
        lines.append(" & ".join([_tex(name), *row]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv(frame: pd.DataFrame, *, index: bool = True) -> str:
    """Write a frame as CSV in which no text is a formula to a spreadsheet.

    A text that begins with ``=``, ``+``, ``-`` or ``@`` and is no number gets an apostrophe.
    """
    named = frame.rename(index=_no_formula, columns=_no_formula)
    return named.map(_no_formula).to_csv(index=index)


def text(means: pd.DataFrame, intervals: pd.DataFrame, percent: bool = True) -> str:
    """Write aligned columns for a terminal."""
    return cells(means, intervals, percent=percent).to_string() + "\n"


FORMATS: dict[str, Callable[[pd.DataFrame, pd.DataFrame, bool], str]] = {
    "text": text,
    "markdown": markdown,
    "latex": latex,
}

TEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"},
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # fmt: skip


FORMULAS = ("=", "+", "-", "@")
MARKUP = {"|": r"\|", "<": "&lt;", ">": "&gt;", "`": "'", "[": r"\[", "]": r"\]"}


def _tex(word: object) -> str:
    return "".join(TEX.get(letter, letter) for letter in printable(word))


def _pipe(word: object) -> str:
    return "".join(MARKUP.get(letter, letter) for letter in printable(word))


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    words = printable(value)
    try:
        float(words)
    except ValueError:
        # A sign by itself is no formula.
        return f"'{words}" if len(words) > 1 and words.startswith(FORMULAS) else words
    return words
