"""What a reproduction may do in another way than this laboratory: one record of functions.

Published numbers come from programs, and programs differ from the text. Such a program's habits are
a ``Practice`` that lives with its paper and is put into ``PRACTICES`` for the time of its runs; see
``experiments/papers/transfer/authors.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedrobust.ensemble.assignment import dealt
from fedrobust.experiment.schema import EnsembleSettings, NodeSettings
from fedrobust.spec import SpecError
from fedrobust.training.schedules import lr_at

RELEASED_CODE = "released_code"
Range = tuple[float, float]


@dataclass(frozen=True)
class Progress:
    """How far a member's training is.

    Attributes
    ----------
    epoch, batch
        Both from 0: the mini-batch that comes next.
    epochs, batches
        Of the whole training, and in each epoch.
    images, batch_size
        In each epoch, and in each mini-batch but the last.
    losses
        Mean training loss of each epoch before this one.
    """

    epoch: int
    batch: int
    epochs: int
    batches: int
    images: int
    batch_size: int
    losses: Sequence[float] = ()


def rate_and_momentum(node: NodeSettings, now: Progress) -> tuple[float, float]:
    """Return the learning rate and the momentum of one optimizer step."""
    done = now.epoch * now.batches + now.batch
    spec = schedule_of(node, epochs=now.epochs, batches=now.batches)
    return lr_at(done, lr=node.lr, schedule=spec, losses=now.losses), node.momentum


def schedule_of(node: NodeSettings, *, epochs: int, batches: int) -> dict[str, Any]:
    """Return a node's schedule as a spec of ``fedrobust.training.SCHEDULES``, in optimizer steps.

    ``node.schedule_value`` is in epochs: T_max of a cosine (0: the whole training), the epochs
    between decays of "step" (0: a third of the training), or the factor an epoch of "exponential"
    (0: 0.95). The cycle is one triangle over the whole training.
    """
    name, value = node.schedule, node.schedule_value
    settings: dict[str, Any] = {}
    if name == "cosine":
        settings = {"steps": max((value or epochs) * batches, 1)}
    elif name == "step":
        settings = {"every": max(1, round(value or max(1.0, epochs / 3))) * batches}
    elif name == "exponential":
        settings = {"gamma": value or 0.95, "every": batches}
    elif name == "cyclic":
        settings = {"steps": epochs * batches}
    return {"name": name, **settings}


def unchanged(images: Tensor, augment: str, *, seed: int, client: int, epoch: int) -> Tensor:
    """Return a member's validation images as they are."""
    return images


def value_range(node: NodeSettings, total: int) -> Range:
    """Return from where to where the schedule's value is drawn in tuning, in epochs."""
    if node.schedule == "cosine":
        return 0.75 * total, float(total)
    if node.schedule == "step":
        return max(1.0, total / 4), max(2.0, total / 2)
    return 0.9, 0.9999


@dataclass(frozen=True, kw_only=True)
class Practice:
    """The functions that a reproduction may replace; the laboratory's own by default.

    Attributes
    ----------
    rate
        (node, progress) -> learning rate and momentum of one step.
    validation_view
        (images uint8, augment, seed, client, epoch) -> the images that the validation loss is
        measured on.
    deal
        (plan, master, count, seed) -> values of each diverse axis, one a node.
    value_range
        (node, epochs of the training) -> range of the schedule's value in tuning.
    masters
        Configurations of node 0 by name, for ``ensemble.master``.
    """

    rate: Callable[[NodeSettings, Progress], tuple[float, float]] = rate_and_momentum
    validation_view: Callable[..., Tensor] = unchanged
    deal: Callable[[EnsembleSettings, NodeSettings, int, int], dict[str, list[str]]] = dealt
    value_range: Callable[[NodeSettings, int], Range] = value_range
    masters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


OURS = Practice()
PRACTICES: dict[str, Practice] = {}


def practice_of(plan: EnsembleSettings) -> Practice:
    """Return the practice that a plan asks for.

    Raises
    ------
    SpecError
        If it asks for the released code's, and its paper's module has not put it into the table.
    """
    if not plan.quirks:
        return OURS
    return released_code("ensemble.quirks = true")


def released_code(setting: str) -> Practice:
    """Return the released code's practice, for a setting that needs it.

    Raises
    ------
    SpecError
        If it is not in the table.
    """
    if RELEASED_CODE not in PRACTICES:
        raise SpecError(
            f"{setting} needs the released code of the transfer paper, which lives with it: run "
            "python -m experiments.papers.transfer.authors FILE.toml"
        )
    return PRACTICES[RELEASED_CODE]


@contextmanager
def practised(name: str, practice: Practice) -> Iterator[None]:
    """Put a practice into the table inside the block."""
    PRACTICES[name] = practice
    try:
        yield
    finally:
        del PRACTICES[name]
