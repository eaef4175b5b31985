"""What is measured of a model on the server: a list of functions ``(round, model) -> metrics``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from fedrobust.adversarial import catastrophic_overfitting, examine, overfitting_probe
from fedrobust.adversarial.frozen import predict
from fedrobust.attacks import threat_model
from fedrobust.attacks.alie_backdoor import TRAIN_SAMPLE, success_rate, taken_for
from fedrobust.attacks.backdoors import rare
from fedrobust.data import Dataset, examples_of
from fedrobust.ensemble.attacker import Crafted
from fedrobust.ensemble.measures import CLEAN, measure
from fedrobust.evaluation import pixels
from fedrobust.experiment.adversarial_settings import Adversarial
from fedrobust.experiment.schema import Experiment
from fedrobust.seeds import generator
from fedrobust.spec import Spec
from fedrobust.training.tasks import METRICS, measured

Metrics = dict[str, Any]
Evaluator = Callable[[int, Any], Metrics]  # (round, model); None where there is no global model
Images = Callable[[], Crafted]


@dataclass(frozen=True)
class Measured:
    """Loss and metrics on the test set; of classes the accuracy.

    Attributes
    ----------
    counts
        How much each test example counts for each client, (n, N), for metrics by client.
    """

    dataset: Dataset
    loss: Spec
    metrics: tuple[str, ...] = ()
    counts: Callable[[], Tensor] | None = None

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Evaluate a model."""
        held_out = self.dataset.test_images, self.dataset.test_labels
        task: dict[str, Any] = {"loss": self.loss, "metrics": self.metrics}
        found = dict(measured(model, *held_out, **task, counts=self.counts))
        if self.dataset.validation is None:
            return found
        # Counts by client are of the test examples: they fit no other set.
        task["metrics"] = tuple(n for n in self.metrics if not METRICS[n].by_client)
        aside = measured(model, *self.dataset.validation, **task)
        return found | {f"validation_{name}": value for name, value in aside.items()}


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under attack on the first test images, with alarms about what is suspicious."""

    settings: Adversarial
    seed: int
    dataset: Dataset

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Attack a model."""
        settings, count = self.settings, self.settings.eval_images
        return examine(
            model,
            pixels(self.dataset.test_images[:count]),
            self.dataset.test_labels[:count],
            eps=settings.eps,
            steps=settings.eval_steps,
            restarts=settings.eval_restarts,
            attacks=settings.eval_attacks,
            # Without the round: all rounds are attacked with the same draws, so that they can be
            # compared.
            generator=generator(self.seed, "robust evaluation"),
        )


@dataclass(frozen=True)
class OverfittingProbe:
    """Accuracy under attack on some training images: it falls where single-step training collapses.

    Attributes
    ----------
    probes
        The accuracies so far: part of a checkpoint.
    """

    settings: Adversarial
    seed: int
    dataset: Dataset
    probes: list[float]

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Attack a model on training images, and compare with the rounds before."""
        count = self.settings.probe_images
        found = overfitting_probe(
            model,
            pixels(self.dataset.train_images[:count]),
            self.dataset.train_labels[:count],
            eps=self.settings.eps,
            count=count,
            # The same draws in every round: a fall is the model's, not that of a luckier attack.
            generator=generator(self.seed, "probe"),
        )
        self.probes.append(found)
        if not catastrophic_overfitting(self.probes):
            return {"probe_accuracy": found}
        best = max(self.probes)
        text = f"catastrophic overfitting: the probe fell from {best:.3f} to {found:.3f}"
        return {"probe_accuracy": found, "alarms": [text]}


@dataclass(frozen=True)
class TransferAccuracy:
    """A model's accuracy on the attacker's images, in the form of a vote's row (FedAvg)."""

    votes: tuple[str, ...]
    images: Images
    device: str

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Ask a model about the attacker's images."""
        crafted = self.images()
        sets = {CLEAN: crafted.clean, **crafted.images}
        found = {name: predict(model, pixels(x.to(self.device))).cpu() for name, x in sets.items()}
        return {"votes": dict.fromkeys(self.votes, measure(found, crafted.labels))}


@dataclass(frozen=True)
class BackdoorSuccess:
    """Share of the test images that a pattern turns into its target; the mean of several patterns.

    Attributes
    ----------
    patterns
        At least one.
    measured_on
        "train": training images of every class instead, as ALIE's released program has it.
    """

    patterns: list[dict[str, Any]]
    dataset: Dataset
    measured_on: str = "held_out"

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Show a model the patterns."""
        data, train = self.dataset, self.measured_on == "train"
        shown: tuple[Tensor, Tensor] = (data.test_images, data.test_labels)
        if train:
            shown = (data.train_images[:TRAIN_SAMPLE], data.train_labels[:TRAIN_SAMPLE])
        found = [success_rate(model, *shown, all_classes=train, **p) for p in self.patterns]
        return {"attack_success": sum(found) / len(found)}


@dataclass(frozen=True)
class EdgeCaseSuccess:
    """Share of the rarest test images of a class that are taken for the attackers' target."""

    tail: dict[str, Any]
    dataset: Dataset

    def __call__(self, server_round: int, model: nn.Module) -> Metrics:
        """Show a model the rare images."""
        images, labels, aim = self.dataset.test_images, self.dataset.test_labels, self.tail
        chosen = rare(images, labels, aim["source"], aim["tail"])
        return {"attack_success": taken_for(model, images[chosen], aim["target"])}


def evaluators_of(
    experiment: Experiment, dataset: Dataset, *, images: Images, device: str, probes: list[float]
) -> list[Evaluator]:
    """Return what an experiment measures of its global model, in the order of a row's columns.

    ``probes`` is what they remember between rounds: it is theirs to append to.
    """
    e, settings = experiment, experiment.adversarial
    # Cut once a run, and only where some metric asks for it.
    counts = cache(partial(examples_of, e, dataset))
    found: list[Evaluator] = [Measured(dataset, e.loss, e.metrics, counts)]
    if settings.eps:
        found.append(RobustAccuracy(settings, e.seed, dataset))
        if settings.probe_images:
            found.append(OverfittingProbe(settings, e.seed, dataset, probes))
    if e.transfer.attacks:
        found.append(TransferAccuracy(tuple(e.ensemble.votes), images, device))
    if patterns := threat_model.patterns(e.attack, dataset.classes):
        found.append(BackdoorSuccess(patterns, dataset, threat_model.measured_on(e.attack)))
    if (tail := threat_model.tail(e.attack)) is not None:
        found.append(EdgeCaseSuccess(tail, dataset))
    return found


def evaluated(evaluators: list[Evaluator], server_round: int, model: Any) -> Metrics:
    """Return the metrics of all evaluators; alarms of several are put one behind the other."""
    metrics: Metrics = {}
    for evaluator in evaluators:
        found = evaluator(server_round, model)
        if "alarms" in metrics and "alarms" in found:
            found = found | {"alarms": [*metrics["alarms"], *found["alarms"]]}
        metrics |= found
    return metrics
