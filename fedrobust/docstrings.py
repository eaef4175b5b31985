"""What a plug-in's numpydoc docstring says: its first line and its paper with the place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring on one line."""
    text = inspect.getdoc(function) or ""
    return text.split("\n\n")[0].replace("\n", " ").strip()


def paper(function: Callable[..., Any]) -> str:
    """Return the References section of a numpydoc docstring on one line; empty without one."""
    lines = (inspect.getdoc(function) or "").splitlines()
    if "References" not in lines:
        return ""
    taken: list[str] = []
    # Past the title and its underline.
    for line in lines[lines.index("References") + 2 :]:
        if line.strip() and set(line.strip()) == {"-"}:
            taken.pop()  # the title of the next section
            break
        taken.append(line.strip())
    return " ".join(part for part in taken if part)
