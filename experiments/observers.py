"""What watches a run must not end it: trackers and callbacks of the user's, guarded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from fedrobust.experiment.schema import Experiment

Row = dict[str, Any]
OnRow = Callable[[Experiment, Row], None]


class ObserverWarning(UserWarning):
    """A tracker or callback raised; the run went on without it."""


def guarded(callback: OnRow, who: str, *, strict: bool = False) -> OnRow:
    """Wrap a callback so that what it raises is one warning, and the run goes on.

    It is called for later rows too: a server that was away for a minute may be back.

    Parameters
    ----------
    who
        Whose callback it is, for the sentence.
    strict
        Let the error end the run instead.
    """
    if strict:
        return callback
    failed = False

    def on_row(experiment: Experiment, row: Row) -> None:
        nonlocal failed
        try:
            # A callback that edits its row must not edit the run's.
            callback(experiment, dict(row))
        except Exception as error:  # foreign code: whatever it raises is no reason to stop
            if not failed:
                failed = True
                warn(who, f"round {row['round']} of {experiment.name}", error)

    return on_row


def guarded_end(close: Callable[[], None], who: str, *, strict: bool = False) -> Callable[[], None]:
    """Wrap what ends a tracker in the same way."""
    if strict:
        return close

    def end() -> None:
        try:
            close()
        except Exception as error:  # foreign code, and every row is written by now
            warn(who, "its end", error)

    return end


def warn(who: str, where: str, error: Exception) -> None:
    """Say once what failed and that the run goes on."""
    warnings.warn(
        f"{who} failed at {where}: {type(error).__name__}: {error}; the run goes on and keeps its"
        " rows, further failures are not shown (strict=True raises them)",
        ObserverWarning,
        stacklevel=3,
    )
