"""What the server runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.redundancy.strategy import RedundantStrategy

__all__ = ["RedundantStrategy"]
HOMES = {"RedundantStrategy": "strategies.redundancy.strategy"}


def __getattr__(name: str) -> Any:
    """Import a public strategy when it is first asked for: the command line needs none of them."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(HOMES[name]))[name]
