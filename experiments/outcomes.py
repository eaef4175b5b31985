"""What a run came to: one whose model never moved is no result, and is said to be none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedrobust.experiment.schema import Experiment

Row = dict[str, Any]


class NoStepWarning(UserWarning):
    """Every round of a run kept the model."""


def stuck(experiment: Experiment, rows: list[Row]) -> str:
    """Say that a run took no step, and why; empty where it took one, or has no round yet."""
    rounds = [row for row in rows if row["round"] > 0]
    reasons = Counter(str(row["kept"]) for row in rounds if "kept" in row)
    # One round with a step is enough: what it came to is a result.
    if not rounds or reasons.total() < len(rounds):
        return ""
    (reason, count), *_ = reasons.most_common(1)
    return (
        f"{experiment.name} (seed {experiment.seed}): not one of {len(rounds)} rounds took a step,"
        f" its accuracy is that of the initial model; {count} x {reason}"
    )


@contextmanager
def expecting_steps(
    results: Any, terminal: Console, failed: Exception | None = None
) -> Iterator[None]:
    """End the command with exit code 1, after its output, if a run of ``Results`` took no step.

    ``failed`` says which runs gave no result at all.
    """
    yield
    for line in str(failed or "").splitlines():
        terminal.print("[bold red]failed:[/]", line, highlight=False, soft_wrap=True)
    lines = [line for experiment, rows in results.runs if (line := stuck(experiment, rows))]
    for line in lines:
        terminal.print("[bold red]no step:[/]", line, highlight=False, soft_wrap=True)
    if lines or failed is not None:
        raise typer.Exit(1)
