"""What the server runs: Flower strategies that are made from values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strategies.robust import RobustStrategy

if TYPE_CHECKING:
    from strategies.redundancy.strategy import RedundantStrategy

__all__ = ["RedundantStrategy", "RobustStrategy"]


def __getattr__(name: str) -> Any:
    """Import the redundant strategy when it is first asked for: it brings compiled searches."""
    if name != "RedundantStrategy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from strategies.redundancy.strategy import RedundantStrategy

    return RedundantStrategy
