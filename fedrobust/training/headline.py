"""The number by which a run is told: accuracy, or the first metric that was asked for."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from fedrobust.spec import Spec, split
from fedrobust.training.tasks import METRICS, OF_VALUES, SHARES


@dataclass(frozen=True)
class Headline:
    """The column that stands for a run in tables.

    Attributes
    ----------
    best
        "max" or "min".
    is_share
        Whether it is a share in [0, 1], which people read in per cent.
    """

    column: str = "accuracy"
    best: str = "max"
    is_share: bool = True


ACCURACY = Headline()


def promised(loss: Spec, metrics: tuple[str, ...]) -> Headline:
    """Return what rows will be shown by, as far as the settings say: before there is one.

    A loss of a user's own is taken for one of classes.
    """
    classes = split(loss)[0] not in OF_VALUES
    return headline(metrics, ("accuracy",) if not metrics and classes else metrics)


def headline(metrics: tuple[str, ...], columns: Container[str]) -> Headline:
    """Return the accuracy where rows have that column, else the first metric, else the loss."""
    if "accuracy" in columns:
        return ACCURACY
    if not metrics:
        return Headline("loss", "min", False)
    best = METRICS[metrics[0]].best if metrics[0] in METRICS else "max"
    return Headline(metrics[0], best, metrics[0] in SHARES)
