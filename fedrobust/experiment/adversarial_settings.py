"""The tables of an experiment on adversarial training, missing labels and pre-training.

Definitions only, as in ``settings``.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedrobust.experiment.field_types import (
    CONFIG,
    AtLeast0,
    AtLeast1,
    BelowOne,
    Fraction,
    NotNegative,
    Number,
    OptionalSpec,
    Spec,
)


@dataclass(frozen=True, config=CONFIG)
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

    mode: Literal["none", "pseudo", "trades"] = "none"
    labelled: Annotated[Number, Field(gt=0, le=1)] = 1.0
    fraction: BelowOne = 0.0
    teacher_rounds: AtLeast0 = 0


@dataclass(frozen=True, config=CONFIG)
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

    rounds: AtLeast0 = 0
    perturbation: OptionalSpec = field(default_factory=dict)
    finetune: Literal["full", "partial"] = "full"


@dataclass(frozen=True, config=CONFIG)
class FederatedAdversarial:
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

    adversarial_clients: Fraction = 1.0
    calibration: NotNegative = 0.0
    slack: BelowOne = 0.0
    slack_top: AtLeast1 = 1
    epochs_gamma: Annotated[Number, Field(gt=0, le=1)] = 1.0
    epochs_every: AtLeast1 = 10


@dataclass(frozen=True, config=CONFIG)
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

    perturbation: OptionalSpec = field(default_factory=dict)
    loss: Spec = field(default_factory=lambda: {"name": "standard"})
    fraction: Fraction = 1.0
    eps: Fraction = 0.0
    eval_steps: AtLeast1 = 20
    eval_images: AtLeast1 = 500
    eval_restarts: AtLeast1 = 1
    eval_attacks: str = "pgd"
    probe_images: AtLeast0 = 0
    eps_warmup: AtLeast0 = 0
    federated: FederatedAdversarial = field(default_factory=FederatedAdversarial)
