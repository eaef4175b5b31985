"""Heat maps as HTML tables: readable on a phone, by a screen reader, and printed."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from fedrobust.training.headline import Headline

LIGHT, DARK = (239, 246, 244), (20, 104, 96)  # one hue, so that it survives grey printing
BLACK = "#000"
SWITCH = 0.179  # above this luminance black ink has the greater contrast
STYLE = "white-space:nowrap;padding:.35em .6em;text-align:right;font-variant-numeric:tabular-nums"


def heat_table(
    means: pd.DataFrame,
    intervals: pd.DataFrame | None = None,
    *,
    low: float = 0.1,
    high: float = 0.9,
    unit: float = 100.0,
    digits: int = 1,
    gaps: pd.DataFrame | None = None,
) -> str:
    """Write a table whose cells are the darker the larger they are.

    Parameters
    ----------
    means
        Fractions; a column ``worst`` is set apart by a rule.
    intervals
        Half-widths of the same shape, written small below each value; NaN for none.
    low, high
        Values of the lightest and of the darkest cell.
    unit
        Factor of the printed numbers: 100 for per cent.
    digits
        Digits after the point.
    gaps
        Differences of the same rows, written with their sign and without a shade.
    """
    columns = [str(name) for name in means.columns]
    others = [] if gaps is None else [str(name) for name in gaps.columns]
    head = [f"<th scope='col'{_of(name)}>{escape(name)}</th>" for name in columns]
    head += [f"<th scope='col' class='gap'>{escape(name)}</th>" for name in others]
    lines = []
    for i, name in enumerate(means.index):
        row = [
            _cell(
                float(means.iat[i, j]),
                math.nan if intervals is None else float(intervals.iat[i, j]),
                (low, high, unit, digits),
                columns[j],
            )
            for j in range(means.shape[1])
        ]
        row += [_gap(float(gaps.iat[i, j]), unit, digits) for j in range(len(others))]  # type: ignore[union-attr]
        of = escape(str(name))
        shown = of.replace("+", "+<wbr>")
        lines.append(f"<tr data-d='{of}'><th scope='row'>{shown}</th>{''.join(row)}</tr>")
    return (
        "<table class='heat' style='border-collapse:collapse'>"
        f"<thead><tr><th></th>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def shown(results: Any) -> str:
    """Write the table of ``experiments.results.Results``, as a notebook shows it."""
    means = results.table()
    return heat_table(means, results.interval(), **scale(results.headline, means))


def scale(shown: Headline, means: pd.DataFrame) -> dict[str, Any]:
    """Return how ``heat_table`` prints and shades what stands for runs."""
    if shown.is_share:
        return {}
    values = means.to_numpy()
    low, high = float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0))
    return {"low": low, "high": high if high > low else low + 1, "unit": 1.0, "digits": 3}


def colours(share: float) -> tuple[str, str]:
    """Return background and ink of a cell; share 0 is light, 1 is dark."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
    bright = luminance(red, green, blue) > SWITCH
    return f"rgb({red},{green},{blue})", BLACK if bright else "#fff"


def luminance(red: int, green: int, blue: int) -> float:
    """Return the relative luminance in [0, 1] of an sRGB colour (WCAG 2.1)."""

    def linear(value: int) -> float:
        share = value / 255
        # WCAG 2.1's own limit; that of sRGB is 0.04045.
        return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def _of(column: str) -> str:
    """Say which column this is: the score stays on the screen, an attack can be switched off."""
    return " class='worst'" if column == "worst" else f" data-a='{escape(column)}'"


def _cell(mean: float, half: float, scale: tuple[float, float, float, int], column: str) -> str:
    of = _of(column)
    if math.isnan(mean):
        return f"<td{of} style='{STYLE}'>-</td>"
    low, high, unit, digits = scale
    # One value everywhere has no range to divide by.
    background, ink = colours((mean - low) / (high - low) if high > low else 0.5)
    border = ";border-left:3px solid #000" if column == "worst" else ""
    spread = "" if math.isnan(half) else f"<br><small>± {half * unit:.{digits}f}</small>"
    style = f"{STYLE};background:{background};color:{ink}{border}"
    return f"<td{of} style='{style}'>{mean * unit:.{digits}f}{spread}</td>"


def _gap(value: float, unit: float, digits: int) -> str:
    told = "-" if math.isnan(value) else f"{value * unit:+.{digits}f}"
    return f"<td class='gap' style='{STYLE}'>{told}</td>"
