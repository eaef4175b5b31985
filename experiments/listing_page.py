"""The listing as a page for a terminal: plain lines that fit its width, and end well in a pipe."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from experiments.listing import Entry
from fedrobust.text import printable

WIDEST = 100
TITLES = {
    "parameters": "settings", "needs": "needs", "sees": "sees", "bears": "bears", "paper": "paper",
}  # fmt: skip


def page(tables: Mapping[str, Sequence[Entry]], *, full: bool) -> Iterator[str]:
    """Yield the lines of a listing.

    Parameters
    ----------
    full
        Everything about each entry; otherwise one line each.
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    for kind, entries in tables.items():
        yield f"{kind} ({len(entries)})" + ("" if full else f": fedrobust list {_word(kind)}")
        wide = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            yield from _whole(entry, width) if full else [_line(entry, wide, width)]
        yield ""


def _word(kind: str) -> str:
    return f"'{kind}'" if " " in kind else kind


def _line(entry: Entry, wide: int, width: int) -> str:
    """Return a name and as much of what it does as fits."""
    room = width - wide - 4
    what = printable(entry["what"])
    return f"  {entry['name']:<{wide}}  {textwrap.shorten(what, max(room, 20), placeholder=' ...')}"


def _whole(entry: Entry, width: int) -> Iterator[str]:
    """Yield name, what it does, settings, needs, what it bears, paper."""
    yield ""
    yield printable(entry["name"])
    yield from textwrap.wrap(
        printable(entry["what"]), width, initial_indent="  ", subsequent_indent="  "
    )
    for key, title in TITLES.items():
        if entry.get(key):
            head = f"  {title + ':':<10}"
            yield from textwrap.wrap(
                printable(entry[key]), width, initial_indent=head, subsequent_indent=" " * 12
            )
