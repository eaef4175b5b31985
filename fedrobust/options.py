"""Tables of an experiment that change how training proceeds; all of them are off by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedrobust.spec import suggest
from fedrobust.training.compression import SCALES

if TYPE_CHECKING:
    from fedrobust.config import Experiment

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


def ranges(e: Experiment) -> Iterator[tuple[bool, str]]:
    """Yield every condition on these tables with the sentence that says it."""
    c, s, p, f = e.compression, e.semi, e.pretrain, e.federated
    yield c.bits == OFF or 2 <= c.bits <= 16, f"compression.bits needs 2..16 or 32, got {c.bits}"
    yield c.scale in SCALES, f"unknown compression.scale {c.scale!r}; {suggest(c.scale, [*SCALES])}"
    yield c.bucket >= 0, f"compression.bucket needs at least 0, got {c.bucket}"
    yield c.sides in SIDES, f"unknown compression.sides {c.sides!r}; {suggest(c.sides, [*SIDES])}"
    yield (
        not (c.replicas and e.participation < 1),
        "compression.sides = 'both' needs participation = 1",
    )
    yield s.mode in SEMI, f"unknown semi.mode {s.mode!r}; {suggest(s.mode, [*SEMI])}"
    yield 0 < s.labelled <= 1, f"semi.labelled needs (0, 1], got {s.labelled}"
    yield 0 <= s.fraction < 1, f"semi.fraction needs [0, 1), got {s.fraction}"
    yield s.teacher_rounds >= 0, f"semi.teacher_rounds needs at least 0, got {s.teacher_rounds}"
    yield (
        s.mode != "none" or (s.labelled == 1 and not s.fraction and not s.teacher_rounds),
        "semi.labelled, semi.fraction and semi.teacher_rounds need a semi.mode",
    )
    yield s.mode != "pseudo" or s.teacher_rounds > 0, "semi.mode = 'pseudo' needs teacher_rounds"
    yield (
        s.mode != "trades" or e.adversarial.loss["name"] in ("trades", "mart"),
        f"semi.mode = 'trades' needs the loss trades or mart, got {e.adversarial.loss['name']}",
    )
    yield p.rounds >= 0, f"pretrain.rounds needs at least 0, got {p.rounds}"
    wrong = suggest(p.finetune, [*FINE_TUNING])
    yield p.finetune in FINE_TUNING, f"unknown pretrain.finetune {p.finetune!r}; {wrong}"
    yield (
        p.rounds + s.teacher_rounds < e.rounds,
        f"pretrain.rounds + semi.teacher_rounds need to be below rounds = {e.rounds}, "
        f"got {p.rounds + s.teacher_rounds}",
    )
    share = f.adversarial_clients
    yield 0 <= share <= 1, f"federated.adversarial_clients needs [0, 1], got {share}"
    yield f.calibration >= 0, f"federated.calibration needs at least 0, got {f.calibration}"
    yield 0 <= f.slack < 1, f"federated.slack needs [0, 1), got {f.slack}"
    top = f.slack_top
    yield 1 <= top <= e.clients, f"federated.slack_top needs 1..{e.clients}, got {top}"
    yield (
        not f.slack or e.defence == "mean",
        f"federated.slack weighs by claimed losses: it needs the rule mean, got {e.defence}",
    )
    yield 0 < f.epochs_gamma <= 1, f"federated.epochs_gamma needs (0, 1], got {f.epochs_gamma}"
    yield f.epochs_every >= 1, f"federated.epochs_every needs at least 1, got {f.epochs_every}"
