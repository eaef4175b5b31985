"""What a section of a page is made of: figures, tables, and the data behind them as links."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from experiments import tables


@dataclass(frozen=True)
class Panel:
    """One figure and its caption; ``attack`` is empty where it is of all of them."""

    title: str
    picture: Markup
    attack: str = ""


@dataclass(frozen=True)
class Section:
    """One section: a sentence, figures, a table, and the data behind them.

    Attributes
    ----------
    lines
        Whether the figures have the page's legend of defences.
    minor
        Folded on the screen, and left out of print.
    wide
        Whether the figures take the whole width.
    legend
        Colours and what they mean.
    choices
        Names and matrices of other runs, which the page's script draws in the place of the first.
    """

    title: str
    lead: str
    panels: tuple[Panel, ...] = ()
    lines: bool = False
    table: Markup | None = None
    behind: Markup | None = None
    csv: str = ""
    minor: bool = False
    wide: bool = False
    legend: tuple[tuple[str, str], ...] = ()
    choices: tuple[tuple[str, dict[str, Any]], ...] = ()


def table_of(frame: pd.DataFrame) -> Markup:
    """Write a plain table with escaped words; numbers without trailing noise."""

    def word(value: Any) -> str:
        if isinstance(value, float):
            return "-" if math.isnan(value) else f"{value:.6g}" if value < 1e6 else f"{value:,.0f}"
        return str(value)

    named = frame.rename_axis(columns=None).map(word)
    if frame.index.name is not None:
        named = named.reset_index()
    # Escaped here: as Markup the template takes it as it is.
    html = named.to_html(border=0, escape=True, index=frame.index.name is None)
    return Markup(f"<div class='wide'>{html}</div>")


def csv_link(frame: pd.DataFrame) -> str:
    """Return a frame as a link that holds its own CSV."""
    text = tables.csv(frame).encode()
    return "data:text/csv;base64," + base64.b64encode(text).decode()
