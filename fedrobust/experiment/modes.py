"""The tables ``[redundancy]``, ``[ensemble]`` and ``[transfer]``: definitions only."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fedrobust.experiment.field_types import (
    CONFIG,
    AtLeast0,
    AtLeast1,
    AtLeast2,
    BelowOne,
    Flag,
    Names,
    NotNegative,
    Number,
    OptionalSpec,
    Positive,
    SomeOf,
    Spec,
    Whole,
    listed,
)

AUTO = "auto"
FEDAVG = "fedavg"
Paradigm = Literal[
    "", "central", "full_data", "fedavg", "same", "tuned", "full",
    "architecture", "optimizer", "scheduler",
    "architecture+scheduler", "architecture+optimizer", "scheduler+optimizer",
    "architecture+optimizer+scheduler",
]  # fmt: skip
PARADIGMS = get_args(Paradigm)[1:]  # without "", which is none
AXES = ("architecture", "optimizer", "scheduler")
OPTIMIZERS_OF_NODES = (
    "sgd", "sgd_m", "sgd_n", "adam", "nadam", "adagrad", "asgd", "rprop", "rmsprop",
)  # fmt: skip
SCHEDULES_OF_NODES = ("cosine", "step", "exponential", "plateau", "cyclic")


@dataclass(frozen=True, config=CONFIG)
class Redundancy:
    """Redundancy against Byzantine workers; off unless named.

    Attributes
    ----------
    name
        A key of ``redundancy.SCHEMES``; empty is ordinary federated training. "none" is the
        papers' baseline: one file a worker, the rule over the workers.
    workers
        K, the number of clients; 0 leaves it to ``clients``.
    replication, m
        r; and the free parameter of ``byzshield_ramanujan``, 0 for none.
    q
        Most Byzantine workers that the server reckons with; -1 is the true number.
    batch
        Samples of one round, over all files; a multiple of the files, two a file at least.
    detection
        "contested" (drop what may be wrong; Aspis), "strict" or "paper" (cliques), "window"
        (degrees, Aspis+), "none" (votes only); "auto" is the scheme's own.
    window
        T_d, the rounds of a detection window.
    tolerance
        0 compares copies by digest, bit by bit; in (0, 1) by relative L2 distance of sketches.
    mixed
        Where workers turn out to compute other bits: 0 leaves the minority out, with a warning; in
        (0, 1) the run compares copies by this tolerance instead.
    sketch
        Size of the linear sketches that compare copies where there is a tolerance.
    coordinates
        Reveal this many coordinates at a time to a coordinate-wise second stage, so that the server
        never holds all files; 0 reveals whole vectors.
    vmap_files
        Files whose gradients a node computes at once, by vmap, in groups fixed by the files'
        numbers (bits depend on the group); 1 computes each alone. Faster where a host simulates all
        workers and files are small; a real node would compute files that it does not hold.
    second
        The second stage, a rule over voted files; empty leaves it to ``rule``. Resolved into it.
    adversary
        Which copies the Byzantine workers distort, a spec of ``redundancy.ADVERSARIES``, or
        "optimal", "weak": what the papers set against the scheme. What is sent there is ``attack``.
    distorts_from
        "commit": Byzantine workers commit to the wrong value. "reveal": they commit to the true one
        and then send the wrong one.
    """

    name: str = ""
    workers: AtLeast0 = 0
    replication: Whole = 3
    m: AtLeast0 = 0
    q: Annotated[Whole, Field(ge=-1)] = -1
    batch: Whole = 0
    detection: Literal["contested", "strict", "paper", "window", "none", "auto"] = "auto"
    window: AtLeast1 = 15
    tolerance: Number = 0.0
    mixed: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    sketch: AtLeast1 = 32
    coordinates: AtLeast0 = 0
    vmap_files: AtLeast1 = 1
    second: OptionalSpec = field(default_factory=dict)
    adversary: Spec = field(default_factory=lambda: {"name": "optimal"})
    distorts_from: Literal["commit", "reveal"] = "commit"

    @property
    def permutation(self) -> str:
        """New worker labels in each round for Aspis+: "fresh"; otherwise "fixed"."""
        return "fresh" if self.name == "aspis_plus" else "fixed"

    @property
    def spec(self) -> dict[str, Any]:
        """The assignment's spec."""
        return {"name": self.name} | ({"m": self.m} if self.m else {})

    @property
    def label(self) -> dict[str, Any]:
        """What tells this defence from others in a table."""
        return {"name": self.name, "detection": self.detection}


@dataclass(frozen=True, config=CONFIG)
class NodeSettings:
    """How one node trains: architecture, optimizer, schedule and their values."""

    model: str
    optimizer: str
    lr: Positive
    momentum: BelowOne
    weight_decay: NotNegative
    schedule: str
    schedule_value: Number = 0.0
    tuned: Flag = False


@dataclass(frozen=True, config=CONFIG)
class EnsembleSettings:
    """Distributed learning without averaging, and inference by vote; off without a paradigm.

    Attributes
    ----------
    paradigm
        "central": one node, all data. "full_data": every node all data, only the initial weights
        and the order differ. "fedavg": one averaged model (strategy ``RobustStrategy``). "same":
        disjoint shares, the master's values. "tuned": own values. "architecture", "optimizer",
        "scheduler", two of them joined by "+", or "full" for all three: these differ as well.
    master
        "" for the values below, or one of the transfer paper's, "round-0" to "round-4", which need
        its released code.
    optimizer, lr, momentum, weight_decay, schedule, schedule_value
        Of the master; its architecture is the experiment's ``model``. "sgd" is the plain one,
        without momentum.
    batch_size
        Images per optimizer step.
    epochs
        Passes over the node's training part each round.
    validation
        Share of a node's data kept for its tuning and its choice of the checkpoint, in [0, 1).
    augment
        "none", or names of ``fedrobust.training.AUGMENTATIONS`` joined by "+": "light" (pad 4,
        crop, flip), "paper" (flip, RandomResizedCrop of 0.08 to 1).
    checkpoint
        "last", or "best": the epoch of lowest validation loss votes.
    trials, tune_epochs
        Random search of nodes that tune: trials of each phase (0: none) and epochs of the two.
    architectures, optimizers, schedules
        What nodes choose from on their diverse axes.
    train_images, test_images
        Use this many images, drawn once for all seeds (the first ones, of the test set); 0: all.
    votes
        Names of ``fedrobust.ensemble.VOTES``; "robust" aggregates with the experiment's rule.
    answer
        What members send: "labels", "probabilities" or "logits".
    query_images
        Images a query message.
    probe_images
        Measure gradient similarity and curvature on this many images at the end; 0: not.
    quirks
        Do as the released code of the transfer paper does; ``experiments.papers.transfer.authors``
        runs such experiments.
    master_round, iteration
        The released code's indices of the assignment, with quirks only.
    nodes
        One table a node whose keys replace what the paradigm gives it.
    """

    paradigm: Paradigm = ""
    master: str = ""
    optimizer: str = "sgd_m"
    lr: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    schedule: str = "cosine"
    schedule_value: Number = 0.0
    batch_size: AtLeast2 = 64
    epochs: AtLeast1 = 1
    validation: BelowOne = 0.2
    augment: str = "none"
    checkpoint: Literal["last", "best"] = "last"
    trials: AtLeast0 = 0
    tune_epochs: Annotated[tuple[AtLeast1, AtLeast1], BeforeValidator(listed)] = (25, 50)
    architectures: Names = ()
    optimizers: Names = OPTIMIZERS_OF_NODES
    schedules: Names = SCHEDULES_OF_NODES
    train_images: AtLeast0 = 0
    test_images: AtLeast0 = 0
    votes: Names = ("soft", "hard", "weighted")
    answer: Literal["labels", "probabilities", "logits"] = "probabilities"
    query_images: AtLeast1 = 500
    probe_images: AtLeast0 = 0
    quirks: Flag = False
    master_round: Whole = 0
    iteration: Whole = 0
    nodes: Annotated[
        tuple[Annotated[dict[str, Any], SomeOf(NodeSettings)], ...], BeforeValidator(listed)
    ] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes on which nodes differ."""
        named = AXES if self.paradigm == "full" else tuple(self.paradigm.split("+"))
        return tuple(axis for axis in named if axis in AXES)

    @property
    def tunes(self) -> bool:
        """Whether nodes look for values of their own."""
        return self.trials > 0 and (self.paradigm == "tuned" or bool(self.axes))

    @property
    def votes_at_inference(self) -> bool:
        """Whether members vote: any paradigm but FedAvg."""
        return self.paradigm not in ("", FEDAVG)


@dataclass(frozen=True, config=CONFIG)
class Transfer:
    """The transfer attacker: its surrogates, its data, its attacks; off without an attack.

    Attributes
    ----------
    attacks
        Names of ``fedrobust.adversarial.TRANSFER_ATTACKS``.
    levels
        L-infinity radius in 8-bit levels: eps = levels / 255.
    steps
        Iterations.
    step_scaling
        How step sizes go with eps: "fixed" (the public code's) or "proportional".
    surrogates
        Architectures, one surrogate each; a name may occur twice, seeds differ.
    data
        "full": the defenders' whole training set. "disjoint": attacker and defender have a half
        each. "share": the attacker has 1 / ``parts`` of it.
    parts
        See ``data``.
    epochs, optimizer, lr, momentum, weight_decay, batch_size, augment
        How surrogates are trained, cosine over the whole training.
    images
        How many test images, from the first; all of them are attacked.
    seed
        The attacker's own: its images do not depend on the defender's seed.
    """

    attacks: Names = ()
    levels: Annotated[Number, Field(ge=0, le=255)] = 8.0
    steps: AtLeast0 = 10
    step_scaling: Literal["fixed", "proportional"] = "fixed"
    surrogates: Names = ()
    data: Literal["full", "disjoint", "share"] = "full"
    parts: AtLeast1 = 7
    epochs: AtLeast1 = 10
    optimizer: str = "sgd_m"
    lr: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    batch_size: AtLeast2 = 64
    augment: str = "none"
    images: AtLeast1 = 500
    seed: Whole = 1000

    @property
    def eps(self) -> float:
        """Radius in units of [0, 1] pixels."""
        return self.levels / 255
