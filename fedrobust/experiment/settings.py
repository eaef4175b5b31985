"""The tables of an experiment that say how clients train and what the server does.

Definitions only: nothing here imports an algorithm, so every other module may import this one.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fedrobust.experiment.field_types import (
    CONFIG,
    AtLeast0,
    AtLeast1,
    BelowOne,
    Flag,
    NotNegative,
    Number,
    Positive,
    Probability,
    SomeOf,
    Spec,
    Whole,
    gathered,
)

OFF = 32  # bits of a float32: nothing is quantised
SHARED = ("mode", "cohort", "precision")  # settings of [training] that all groups share
# Settings of [training] that only local steps read, so that gradient mode refuses them.
LOCAL_STEPS = ("epochs", "steps", "optimizer", "lr", "momentum", "schedule")


@dataclass(frozen=True, config=CONFIG)
class Recipe:
    """How a client trains in one round.

    Attributes
    ----------
    mode
        "gradient": one mini-batch gradient at the global model. "update": local steps, answered
        with global minus local parameters, so that the server subtracts either.
    batch_size
        Images per mini-batch, at most what the client holds.
    epochs, steps
        Length of local training in update mode: ``steps`` mini-batches, or ``epochs`` passes
        where steps is 0.
    optimizer, lr, momentum, weight_decay
        The local optimizer of update mode, a name of ``fedrobust.training.OPTIMIZERS``; weight
        decay also adds to the gradient of gradient mode.
    schedule
        A spec of ``SCHEDULES``: how ``lr`` changes from round to round.
    clip
        Greatest L2 norm of a mini-batch gradient, longer ones are shortened to it; 0 clips none.
    augment
        "none", or names of ``fedrobust.training.AUGMENTATIONS`` joined by "+": "flip+crop".
    precision
        "float32", "tf32" or "bf16".
    cohort
        "off": clients train one by one. "vmap": clients of one kind train as one stack. "auto":
        as one stack where that is possible and faster. Equal to "off" up to float error.
    """

    mode: Literal["gradient", "update"] = "gradient"
    batch_size: AtLeast1 = 32
    epochs: AtLeast1 = 1
    steps: AtLeast0 = 0
    optimizer: str = "sgd"
    lr: Positive = 0.05
    momentum: BelowOne = 0.0
    weight_decay: NotNegative = 0.0
    schedule: Spec = field(default_factory=lambda: {"name": "constant"})
    clip: NotNegative = 0.0
    augment: str = "none"
    precision: str = "float32"
    cohort: str = "off"


@dataclass(frozen=True, config=CONFIG)
class Group:
    """Clients of one kind.

    Attributes
    ----------
    share
        Of all clients, in (0, 1]; clients in no group train as ``[training]`` says.
    training
        What differs from ``[training]``: optimizer, schedule, lr, batch_size, epochs, steps, ...
    speed
        Images that a client trains on in a simulated second; 0 takes no time.
    latency
        Simulated seconds that the messages of a round take.
    jitter
        The training time is multiplied by exp(jitter * N(0, 1)) in each round.
    dropout
        Probability that a client does not answer in a round, in [0, 1].
    """

    share: Annotated[Number, Field(gt=0, le=1, title="a value in ")]
    training: Annotated[dict[str, Any], SomeOf(Recipe, without=SHARED)] = field(
        default_factory=dict
    )
    speed: NotNegative = 0.0
    latency: NotNegative = 0.0
    jitter: NotNegative = 0.0
    dropout: Probability = 0.0


RECIPE_KEYS = tuple(f.name for f in fields(Recipe) if f.name not in SHARED)
GroupTable = Annotated[
    Group, BeforeValidator(lambda table: gathered(table, (*RECIPE_KEYS, *SHARED)))
]


@dataclass(frozen=True, config=CONFIG)
class Server:
    """What the server does with the aggregate.

    Attributes
    ----------
    lr, momentum
        v <- momentum v + aggregate; w <- w - lr v.
    evaluate_every
        Rounds between central evaluations; the last round is always evaluated.
    deadline
        Seconds to wait for replies of one round.
    min_replies
        Fewest accepted replies; below it, or below what the rule needs, the model is kept.
    largest
        A reply with a value beyond this magnitude is refused.
    root_images
        Training images that the server holds itself, for rules that trust it (fltrust, zeno, rsa).
    optimizer
        A spec of ``fedrobust.training.SERVER_OPTIMIZERS``: "sgd" (``momentum`` is its), "lalr",
        "lars", "layerwise", or FedOpt's "adagrad", "adam" and "yogi".
    validation
        Share of the training examples that no client gets: rows then tell of them too, under
        ``validation_loss``, ``validation_accuracy``, ..., so that the test set need decide nothing.
    schedule, warmup
        A spec of ``fedrobust.training.SCHEDULES`` and the steps of linear warm-up before it.
    times
        Ask clients how long attack, training and encoding took, and put the sums into the row.
    bandwidth
        Bits per second of each client's line; the row then says how long its bytes would take.
        0: not asked.
    """

    lr: Positive = 0.1
    momentum: BelowOne = 0.9
    evaluate_every: AtLeast1 = 5
    deadline: Positive = 600.0
    min_replies: AtLeast1 = 1
    largest: Positive = 1e10
    root_images: AtLeast0 = 0
    optimizer: Spec = field(default_factory=lambda: {"name": "sgd"})
    schedule: Spec = field(default_factory=lambda: {"name": "constant"})
    warmup: AtLeast0 = 0
    times: Flag = False
    bandwidth: NotNegative = 0.0
    validation: BelowOne = 0.0


def _bits(value: int) -> int:
    if value != OFF and not 2 <= value <= 16:
        raise ValueError(f"needs 2..16 or {OFF}, got {value}")
    return value


@dataclass(frozen=True, config=CONFIG)
class Compression:
    """Stochastic quantisation of what travels; see ``fedrobust.training.quantize``.

    Attributes
    ----------
    bits
        2 to 16 per coordinate, sign included; 32 sends float32.
    scale
        "l2" or "linf".
    bucket
        Consecutive coordinates that share a norm; 0: one norm per parameter tensor.
    sides
        "up": clients' updates. "both": the aggregate too; then every client keeps a replica of the
        model and takes the server's step itself. One that missed a round is sent the whole model.
    """

    bits: Annotated[Whole, AfterValidator(_bits)] = OFF
    scale: Literal["l2", "linf"] = "l2"
    bucket: AtLeast0 = 0
    sides: Literal["up", "both"] = "up"

    @property
    def on(self) -> bool:
        """Whether updates are quantised."""
        return self.bits != OFF

    @property
    def replicas(self) -> bool:
        """Whether clients keep replicas of the model."""
        return self.on and self.sides == "both"
