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
    """One figure and its caption."""

    title: str
    picture: Markup


@dataclass(frozen=True)
class Section:
    """One section: a sentence, figures, a table, and the data behind them."""

    title: str
    lead: str
    panels: tuple[Panel, ...] = ()
    legend: tuple[tuple[str, str, str], ...] = ()
    table: Markup | None = None
    behind: Markup | None = None
    csv: str = ""


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
