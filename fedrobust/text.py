"""Texts that a client made: what is kept of them before they are logged, stored or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LONGEST = 300
FAILED = "the run failed: "  # how a server app's last sentence begins in its log


def printable(text: object, *, limit: int = LONGEST) -> str:
    """Keep the printable characters of one line.

    Line breaks and tabs become spaces. Control characters, escape codes, invisible characters and
    those that turn the direction of writing become ``?``: a text cannot forge a line of a log,
    colour a terminal, or look like another one.

    Parameters
    ----------
    limit
        Most characters; what is longer ends with ``...``.
    """
    # Cut before it is split: a client's text may have any length.
    words = " ".join(str(text)[: 4 * limit].split())
    kept = "".join(letter if letter.isprintable() else "?" for letter in words)
    return kept if len(kept) <= limit else kept[: limit - 3] + "..."


def printables(value: Any) -> Any:
    """Return a row, or any tree of plain values, whose texts are ``printable``; keys too."""
    if isinstance(value, str):
        return printable(value, limit=10 * LONGEST)
    if isinstance(value, Mapping):
        return {printables(key): printables(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(printables(item) for item in value)
    return value


def slug(text: str) -> str:
    """Make a folder name of letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()
