"""Text of the audited app, made safe to show."""

from __future__ import annotations

import re

ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]"  # colours, cursor
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def plain(text: object) -> str:
    """Return text without escape sequences and control characters: it may come from the app."""
    return ESCAPES.sub("", str(text).replace("\n", " ").replace("\r", " "))
