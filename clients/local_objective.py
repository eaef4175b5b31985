"""What a client trains in a round: which images and labels, which loss, which batches.

The phases follow one another: rotations (``pretrain``), labelled clean images (the teacher of
``semi``), then training, adversarial where the experiment asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn

from clients.node import Node
from fedrobust import adversarial
from fedrobust.cohort import Member
from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import Experiment, phase
from fedrobust.flower import array_of, read_tensor
from fedrobust.models import on_branch
from fedrobust.seeds import generator
from fedrobust.training import Recipe
from fedrobust.training.local import Draw
from fedrobust.training.losses import Loss
from fedrobust.training.server_optimizer import fixed_in

PSEUDO = "pseudo-labels"
TURNS = 4  # by 0, 90, 180 and 270 degrees


@dataclass
class Stopwatch:
    """Seconds spent on a client's training, and inside the attack that it measures."""

    whole: float = 0.0
    attack: float = 0.0

    def over(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the attack, measured."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.attack += time.perf_counter() - began

        return measured

    def times(self) -> dict[str, float]:
        """Return what the client tells the server."""
        return {"attack-seconds": self.attack, "train-seconds": self.whole - self.attack}


@dataclass(frozen=True)
class LocalTask:
    """One client's training in one round, and the watch that measures it."""

    member: Member
    watch: Stopwatch


def stackable(node: Node, server_round: int) -> bool:
    """Whether clients may train as one stack in a round: none of them does anything of its own."""
    e = node.experiment
    # A stack has no times of single clients.
    plain = phase(e, server_round) == "train" and e.semi.mode == "none" and not e.server.times
    own = len(node.statistics) or e.adversarial.federated.calibration or e.compression.replicas
    return bool(plain and not own and not fixed_in(e, server_round, node.model.sizes))


def objective(
    node: Node,
    context: Context,
    vector: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    server_round: int,
    client: int,
    out: Tensor | None = None,
) -> LocalTask:
    """Prepare a client's training in a round, from the global model (d,) that it was sent."""
    experiment = node.experiment
    watch = Stopwatch()
    settings: dict[str, Any] = {}
    if experiment.adversarial.perturbation or experiment.pretrain.rounds:
        source = generator(experiment.seed, "perturbation", round=server_round, client=client)
        settings["generator"] = source
    if experiment.server.times:
        settings["attack"] = watch.over(adversarial.perturb)
    images, labels, loss, draw = _what(
        node, context, vector, images, labels, server_round, client, settings
    )
    source = generator(experiment.seed, "batches", round=server_round, client=client)
    recipe = _recipe(experiment, node.recipe(client, server_round), server_round)
    return LocalTask(Member(images, labels, recipe, source, loss, out, draw), watch)


def _what(
    node: Node,
    context: Context,
    vector: Tensor,
    images: Tensor,
    labels: Tensor,
    server_round: int,
    client: int,
    settings: dict[str, Any],
) -> tuple[Tensor, Tensor, Loss, Draw | None]:
    """Return the images, labels, loss and batches of the round's phase."""
    experiment = node.experiment
    stage = phase(experiment, server_round)
    if stage == "pretrain":
        spec = experiment.pretrain.perturbation or {"name": "none"}
        return images, labels, partial(_rotation_loss, perturbation=spec, **settings), None
    masked = _masked(experiment, labels, client)
    if stage == "teacher":
        known = masked >= 0
        return images[known], masked[known], partial(_clean, node.loss), None
    if experiment.semi.mode == "pseudo":
        labels = _pseudo(node, context, vector, images, masked)
    elif experiment.semi.mode == "trades":
        labels = masked
    loss = _training_loss(node, masked, server_round, client, settings)
    share = experiment.semi.fraction
    return images, labels, loss, partial(_fixed_share, masked, share) if share else None


def _training_loss(
    node: Node,
    labels: Tensor,
    server_round: int,
    client: int,
    settings: dict[str, Any],
) -> Loss:
    """Return the loss on clean images, or the adversarial loss; on calibrated logits."""
    experiment = node.experiment
    table, variant = experiment.adversarial, experiment.adversarial.federated
    dual = experiment.batchnorm["name"] == "dual"
    loss: Loss = partial(_clean, node.loss) if dual else node.loss
    perturbing = client < _nearest(variant.adversarial_clients * experiment.clients)
    if table.perturbation and perturbing:
        loss = adversarial.adversarial_objective(
            perturbation=_grown(table.perturbation, table.eps_warmup, server_round),
            loss=table.loss,
            fraction=table.fraction,
            **settings,
        )
    if variant.calibration:
        # -1 is an image without a label, of no class to count.
        counts = torch.bincount(labels[labels >= 0], minlength=node.classes)
        loss = partial(_calibrated, loss, counts, variant.calibration)
    return loss


def _calibrated(
    loss: Loss, counts: Tensor, strength: float, module: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    calibrated = adversarial.Calibrated(module, counts, strength=strength)
    return loss(calibrated.train(module.training), images, labels)


def _clean(loss: Loss, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with on_branch(module, "clean"):
        return loss(module, images, labels)


def _rotation_loss(
    module: nn.Module, images: Tensor, labels: Tensor, *, perturbation: Any, **settings: Any
) -> Tensor:
    """Four turns of a quarter of the batch: as many images as the batch has."""
    turned, turns = adversarial.rotations(images[: -(-len(images) // TURNS)])
    head = adversarial.FirstLogits(module, TURNS)
    head.train(module.training)
    return adversarial.adversarial_loss(head, turned, turns, perturbation=perturbation, **settings)


def _nearest(value: float) -> int:
    # Not ``round``, which takes halves to the even neighbour: 0.5 of 5 clients would be 2.
    return int(value + 0.5)


def _grown(spec: dict[str, Any], warmup: int, server_round: int) -> dict[str, Any]:
    """Scale radius and step of the perturbation linearly over the first rounds."""
    share = min(1.0, server_round / warmup) if warmup else 1.0
    return spec | {key: share * spec[key] for key in ("eps", "step_size") if key in spec}


def _recipe(experiment: Experiment, recipe: Recipe, server_round: int) -> Recipe:
    """Return the recipe of a round: with fewer local epochs later, where asked (FedDynAT)."""
    variant = experiment.adversarial.federated
    if variant.epochs_gamma == 1:
        return recipe
    epochs = adversarial.epochs_at(
        server_round - 1,  # rounds count from 1
        first=recipe.epochs,
        gamma=variant.epochs_gamma,
        every=variant.epochs_every,
    )
    return replace(recipe, epochs=epochs)


def _masked(experiment: Experiment, labels: Tensor, client: int) -> Tensor:
    """Take the labels away of all but the labelled share: the same ones in every round."""
    share = experiment.semi.labelled
    if share == 1:
        return labels
    source = generator(experiment.seed, "unlabelled", client=client)
    order = torch.randperm(len(labels), generator=source)
    # One label at the least: the teacher has nothing to train on otherwise.
    kept = max(1, _nearest(share * len(labels)))
    masked = torch.full_like(labels, -1)
    masked[order[:kept]] = labels[order[:kept]]
    return masked


def _pseudo(node: Node, context: Context, vector: Tensor, images: Tensor, masked: Tensor) -> Tensor:
    """Return the teacher's labels; the teacher is the first model that this phase began with."""
    if PSEUDO in context.state:
        return read_tensor(context.state, PSEUDO, "labels").long()
    # The scratch model holds whatever was trained or measured last.
    node.model.load(vector)
    with on_branch(node.model.module, "clean"):
        filled = adversarial.pseudo_labels(node.model.module, pixels(images), masked)
    # States are read back as float32 alone; classes below 2^24 are exact in it.
    context.state[PSEUDO] = array_of(labels=filled.float())
    return filled


def _fixed_share(
    masked: Tensor, share: float, images: int, recipe: Recipe, source: torch.Generator
) -> Iterator[Tensor]:
    """Yield batches with an exact unlabelled share: ``epochs`` passes, or ``steps`` batches."""
    size = min(recipe.batch_size, images)

    def one_pass(_: int) -> Iterator[Tensor]:
        return adversarial.semi_batches(masked, batch_size=size, fraction=share, generator=source)

    if recipe.steps or recipe.mode == "gradient":
        endless = chain.from_iterable(one_pass(i) for i in count())
        # Without steps it is a gradient, which is that of one batch.
        yield from islice(endless, recipe.steps or 1)
    else:
        yield from chain.from_iterable(one_pass(i) for i in range(recipe.epochs))
