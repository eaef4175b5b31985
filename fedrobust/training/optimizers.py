"""How a node's weights move: nine optimizers, five learning-rate schedules.

Correct by default. ``quirks`` gives what the released code of Andreina et al. (AAAI 2025) does
instead, so that its numbers can be reproduced: a StepLR whose step is no whole number and so never
decays, a CyclicLR that is stepped once an epoch with a half-cycle of 2,000 and cycles the momentum
of plain SGD, and a cosine that rises again after its T_max.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedrobust.spec import SpecError, suggest

SOLVERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "sgd_m": torch.optim.SGD,
    "sgd_n": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "rmsprop": torch.optim.RMSprop,
}
MOMENTUM_SOLVERS = ("sgd", "sgd_m", "sgd_n", "rmsprop")  # for sgd tuned, but unused
NO_DECAY = ("rprop",)
LR_SCHEDULES = ("constant", "cosine", "step", "exponential", "plateau", "cyclic")
VALUED = ("cosine", "step", "exponential")  # schedules with a value to tune
CYCLE_LIMIT = 10.0  # max_lr / base_lr of the cycle
PLATEAU_FACTOR, PLATEAU_PATIENCE, PLATEAU_THRESHOLD = 0.1, 10, 1e-4
QUIRK_HALF_CYCLE = 2000
CYCLED_MOMENTUM = (0.8, 0.9)  # CyclicLR's defaults: at the highest and at the lowest rate


@dataclass(frozen=True)
class Schedule:
    """A learning rate over time, closed form: no state but the losses so far.

    Attributes
    ----------
    name
        One of ``LR_SCHEDULES``.
    value
        Cosine: T_max in epochs (0: the whole training). Step: epochs between decays by 0.1 (0: a
        third of the training). Exponential: factor an epoch (0: 0.95). Unused otherwise.
    lr
        The base rate; the cycle runs from it to ten times it and back.
    epochs
        Of the whole training.
    batches
        Optimizer steps an epoch.
    quotient
        Images / batch size, which the released code takes for ``batches``; with quirks only.
    quirks
        Step as the released code does.
    """

    name: str
    value: float
    lr: float
    epochs: int
    batches: int
    quotient: float = 0.0
    quirks: bool = False

    def at(self, epoch: int, batch: int = 0, losses: Sequence[float] = ()) -> float:
        """Return the rate of one optimizer step.

        Parameters
        ----------
        epoch, batch
            Both from 0. Cosine and the correct cycle move each step, the others each epoch.
        losses
            Mean training loss of each epoch before this one; only "plateau" reads them.
        """
        done = epoch * self.batches + batch
        if self.name == "cosine":
            return self.lr * self._cosine(done)
        if self.name == "step":
            return self.lr * 0.1 ** self._decays(epoch)
        if self.name == "exponential":
            return self.lr * (self.value or 0.95) ** epoch
        if self.name == "plateau":
            return self.lr * PLATEAU_FACTOR ** plateau_decays(losses)
        if self.name == "cyclic":
            return self.lr * (1 + (CYCLE_LIMIT - 1) * self._height(epoch, done))
        return self.lr

    def momentum_at(self, optimizer: str, momentum: float, epoch: int) -> float:
        """Return the momentum: the given one, but for a cycle with quirks."""
        if not (self.quirks and self.name == "cyclic" and optimizer in MOMENTUM_SOLVERS):
            return momentum
        low, high = CYCLED_MOMENTUM
        return high - (high - low) * self._height(epoch, 0)

    def _cosine(self, done: int) -> float:
        per_epoch = self.quotient if self.quirks and self.quotient else self.batches
        period = max((self.value or self.epochs) * per_epoch, 1)
        place = done if self.quirks else min(done, period)
        return (1 + math.cos(math.pi * place / period)) / 2

    def _decays(self, epoch: int) -> int:
        step = self.value or max(1.0, self.epochs / 3)
        if self.quirks:  # epoch % step never becomes 0 again
            return sum(1 for past in range(1, epoch + 1) if past % step == 0)
        return epoch // max(1, round(step))

    def _height(self, epoch: int, done: int) -> float:
        """Return how far up the triangle, in [0, 1]; correct: one triangle over the training."""
        half = QUIRK_HALF_CYCLE if self.quirks else max(self.epochs * self.batches / 2, 1)
        place = (epoch if self.quirks else done) / (2 * half) % 1
        return 1 - abs(2 * place - 1)


def plateau_decays(losses: Sequence[float]) -> int:
    """Count how often ReduceLROnPlateau has cut the rate after these losses."""
    best, waiting, cuts = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, waiting = loss, 0
        else:
            waiting += 1
        if waiting > PLATEAU_PATIENCE:
            cuts, waiting = cuts + 1, 0
    return cuts


def build_solver(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Build an optimizer by name; momentum and weight decay go where they exist.

    Raises
    ------
    SpecError
        If the name is unknown, or Nesterov's step has no momentum.
    """
    if name not in SOLVERS:
        raise SpecError(f"unknown optimizer {name!r}; {suggest(name, list(SOLVERS))}")
    settings: dict[str, float | bool] = {"lr": lr}
    if name not in NO_DECAY:
        settings["weight_decay"] = weight_decay
    if name in MOMENTUM_SOLVERS and name != "sgd":
        settings["momentum"] = momentum
    if name == "sgd_n":
        if not momentum > 0:
            raise SpecError(f"sgd_n needs a positive momentum, got {momentum}")
        settings["nesterov"] = True
    return SOLVERS[name](parameters, **settings)


def fits(optimizer: str, schedule: str) -> bool:
    """Tell whether the two go together: the cycle only with momentum-capable optimizers."""
    return schedule != "cyclic" or optimizer in MOMENTUM_SOLVERS
