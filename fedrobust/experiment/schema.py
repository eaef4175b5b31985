"""One experiment: TOML -> frozen dataclasses, every error reported at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fedrobust.ensemble.plan import Plan, Transfer
from fedrobust.redundancy.rounds import Scheme
from fedrobust.simulation import stragglers
from fedrobust.training import Recipe


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = errors
        super().__init__("\n".join(errors))


OFF = 32
SIDES = ("up", "both")
SEMI = ("none", "pseudo", "trades")
FINE_TUNING = ("full", "partial")
BATCHNORM = ("average", "local", "dual")


@dataclass(frozen=True)
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

    bits: int = OFF
    scale: str = "l2"
    bucket: int = 0
    sides: str = "up"

    @property
    def on(self) -> bool:
        """Whether updates are quantised."""
        return self.bits != OFF

    @property
    def replicas(self) -> bool:
        """Whether clients keep replicas of the model."""
        return self.on and self.sides == "both"


@dataclass(frozen=True)
class Semi:
    """Images without labels.

    Attributes
    ----------
    mode
        "none": every image is labelled. "pseudo": a teacher's labels, then treated as labelled.
        "trades": unlabelled images count in the KL only; goes with the loss "trades" or "mart".
    labelled
        Share of each client's images that keep their label, in (0, 1]; the rest lose it.
    fraction
        Share of each batch that is unlabelled, exactly; 0 shuffles both kinds together.
    teacher_rounds
        First rounds of training on labelled, clean images alone; the model that they give is the
        teacher of "pseudo", and training goes on from it (an interpretation: robust self-training
        starts anew).
    """

    mode: str = "none"
    labelled: float = 1.0
    fraction: float = 0.0
    teacher_rounds: int = 0


@dataclass(frozen=True)
class Pretrain:
    """Self-supervised pre-training by rotations before the labels are used.

    Attributes
    ----------
    rounds
        How many rounds; 0: none. Then the last layer starts anew, and so do the server's moments.
    perturbation
        A spec of ``fedrobust.adversarial.PERTURBATIONS``; empty: on clean images.
    finetune
        "full": every layer goes on training. "partial": the last layer only.
    """

    rounds: int = 0
    perturbation: dict[str, Any] = field(default_factory=dict)
    finetune: str = "full"


@dataclass(frozen=True)
class Federated:
    """Variants of federated adversarial training.

    Attributes
    ----------
    adversarial_clients
        Share of the clients that perturb their batches (the first ones); the others train clean.
    calibration
        CalFAT: strength of log(class count) added to each client's logits; 0: off.
    slack, slack_top
        SFAT: weight (1 + slack) / (1 - slack) for the ``slack_top`` clients of lowest loss. Their
        losses are claims, so it goes with the rule "mean" only; 0: off.
    epochs_gamma, epochs_every
        FedDynAT: local epochs times gamma every so many rounds, at least 1; gamma 1: constant.
    """

    adversarial_clients: float = 1.0
    calibration: float = 0.0
    slack: float = 0.0
    slack_top: int = 1
    epochs_gamma: float = 1.0
    epochs_every: int = 10


def phase(experiment: Experiment, round: int) -> str:
    """Return what a round (from 1) trains: "pretrain", "teacher" or "train"."""
    if round <= experiment.pretrain.rounds:
        return "pretrain"
    teacher = experiment.semi.teacher_rounds if experiment.semi.mode != "none" else 0
    return "teacher" if round <= experiment.pretrain.rounds + teacher else "train"


@dataclass(frozen=True)
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
        A spec of ``fedrobust.training.SERVER_OPTIMIZERS``: "sgd" (``momentum`` is its), or "lalr".
    schedule, warmup
        A spec of ``fedrobust.training.SCHEDULES`` and the steps of linear warm-up before it.
    times
        Ask clients how long attack, training and encoding took, and put the sums into the row.
    bandwidth
        Bits per second of each client's line; the row then says how long its bytes would take.
        0: not asked.
    """

    lr: float = 0.1
    momentum: float = 0.9
    evaluate_every: int = 5
    deadline: float = 600.0
    min_replies: int = 1
    largest: float = 1e10
    root_images: int = 0
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "sgd"})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    warmup: int = 0
    times: bool = False
    bandwidth: float = 0.0


@dataclass(frozen=True)
class Adversarial:
    """Distributed adversarial training and robust evaluation; off unless given.

    Attributes
    ----------
    perturbation
        How clients perturb their batches, a spec of ``fedrobust.adversarial.PERTURBATIONS``; empty
        trains on clean images and only evaluates.
    loss
        A spec of ``fedrobust.adversarial.LOSSES``.
    fraction
        Share of each batch that is perturbed, in [0, 1].
    eps
        L-infinity radius of the robust evaluation (PGD), in units of [0, 1] pixels; 0 skips it.
    eval_steps, eval_images, eval_restarts
        Its steps of eps / 4, how many test images it takes, and its runs per image.
    eval_attacks
        Which attacks of ``fedrobust.adversarial.EVALUATIONS``, joined by "+": "fgsm+pgd".
    probe_images
        So many training images are attacked too, at each evaluation: their accuracy falls at once
        where single-step training collapses (catastrophic overfitting). 0: none.
    federated
        Variants of federated adversarial training.
    eps_warmup
        Rounds over which the radius and step of the training perturbation grow linearly.
    """

    perturbation: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=lambda: {"name": "standard"})
    fraction: float = 1.0
    eps: float = 0.0
    eval_steps: int = 20
    eval_images: int = 500
    eval_restarts: int = 1
    eval_attacks: str = "pgd"
    probe_images: int = 0
    eps_warmup: int = 0
    federated: Federated = field(default_factory=Federated)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of one run.

    Attributes
    ----------
    clients, byzantine
        n and the true number of Byzantine clients; `placement` says who they are.
    rule, pre, attack, placement, partition
        Specs: a name, or ``{"name": ..., **parameters}``. A rule or pre-aggregator that needs f
        and was given none gets f = byzantine, written out in the resolved configuration.
    worker_momentum
        beta of m <- beta m + (1 - beta) update, kept by every client; 0 sends the update itself.
    participation
        Share of the clients that are asked in a round, drawn anew each time.
    groups
        Clients that differ from ``training``, by name; see ``fedrobust.simulation.stragglers``.
    batchnorm
        Whose running statistics count: "average" (the server's, by its ``rule``, "median" unless
        given, sent to all), "local" (every client keeps its own; the server evaluates with the
        ``rule`` over them), "dual" (as average, one set for clean and one for perturbed images;
        ``serve`` = "adversarial" or "clean" says which the server's model uses).
    compression, semi, pretrain
        See ``fedrobust.options``.
    """

    data: str
    model: str
    clients: int
    byzantine: int
    rounds: int
    seed: int
    rule: dict[str, Any]
    attack: dict[str, Any]
    pre: tuple[dict[str, Any], ...] = ()
    partition: dict[str, Any] = field(default_factory=lambda: {"name": "iid"})
    placement: dict[str, Any] = field(default_factory=lambda: {"name": "random"})
    worker_momentum: float = 0.0
    training: Recipe = field(default_factory=Recipe)
    server: Server = field(default_factory=Server)
    adversarial: Adversarial = field(default_factory=Adversarial)
    participation: float = 1.0
    groups: dict[str, stragglers.Group] = field(default_factory=dict)
    redundancy: Scheme = field(default_factory=Scheme)
    batchnorm: dict[str, Any] = field(default_factory=lambda: {"name": "average"})
    compression: Compression = field(default_factory=Compression)
    semi: Semi = field(default_factory=Semi)
    pretrain: Pretrain = field(default_factory=Pretrain)
    ensemble: Plan = field(default_factory=Plan)
    transfer: Transfer = field(default_factory=Transfer)

    @property
    def name(self) -> str:
        """Attack against pre-aggregators and rule, for tables: ``alie / nnm+krum``."""
        return f"{self.attack['name']} / {self.defence}"

    @property
    def defence(self) -> str:
        """Scheme, pre-aggregators and rule: ``nnm+trimmed_mean``, ``aspis+median``."""
        return "+".join(stage["name"] for stage in self.stages)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The defence in order: the scheme, if any, the pre-aggregators and the rule."""
        return [*([self.redundancy.label] if self.redundancy.name else []), *self.pre, self.rule]

    def to_dict(self) -> dict[str, Any]:
        """Return plain tables, fully resolved."""
        document = dataclasses.asdict(self)
        return document | {"pre": list(document["pre"])}

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML."""
        return tomli_w.dumps(self.to_dict())

    @property
    def run_id(self) -> str:
        """Hash of the resolved configuration: equal settings, equal folder."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
