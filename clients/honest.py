"""The honest client: train on its own share, answer with an update."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.workshop import Workshop
from fedrobust.adversarial import adversarial_loss
from fedrobust.config import Experiment
from fedrobust.flower import array_of, read_setting, read_tensor
from fedrobust.seeds import generator
from fedrobust.training import Member, one_thread, train_cohort
from fedrobust.training.local import Loss, cross_entropy

MOMENTUM = "momentum"
Result = tuple[Tensor, float]  # the update (d,) and its loss


@dataclass(frozen=True)
class Task:
    """One training message, read: the global model, the round, and whose turn it is."""

    vector: Tensor
    round: int
    client: int


@dataclass(frozen=True)
class Trained:
    """What local training gave: the update (d,), and the claims that go with it."""

    update: Tensor
    examples: int
    loss: float


def read_task(message: Message, context: Context) -> Task:
    """Read a training message."""
    vector = read_tensor(message.content, "arrays", "model")
    client = int(context.node_config["partition-id"])
    return Task(vector, int(read_setting(message.content, "config", "round")), client)


def train(
    workshop: Workshop, task: Task, context: Context, images: Tensor, labels: Tensor
) -> Trained:
    """Train on the given images and labels; worker momentum lives in the client's state."""
    results = train_alone(workshop, task, member(workshop, task, images, labels))
    return finish(workshop, context, results, examples=len(labels))


def member(
    workshop: Workshop, task: Task, images: Tensor, labels: Tensor, *, keep: bool = False
) -> Member:
    """Describe the client's local training; ``keep`` puts its update where the last one lay."""
    experiment = workshop.experiment
    return Member(
        images,
        labels,
        workshop.recipe(task.client, task.round),
        generator(experiment.seed, "batches", round=task.round, client=task.client),
        _loss(experiment, task),
        workshop.rows[task.client] if keep and not experiment.worker_momentum else None,
    )


def train_alone(workshop: Workshop, task: Task, member: Member) -> Result:
    """Train one client."""
    start = task.vector.to(workshop.model.vector.device)
    with one_thread():
        return train_cohort(workshop.model, start, [member], cohort="off")[0]


def finish(workshop: Workshop, context: Context, results: Result, *, examples: int) -> Trained:
    """Mix the update into the client's momentum, if it keeps one."""
    update, loss = results
    beta = workshop.experiment.worker_momentum
    return Trained(_momentum(update, beta, context), examples, loss)


def _loss(experiment: Experiment, task: Task) -> Loss:
    """Return the client's loss: cross-entropy, or an adversarial one at the present parameters."""
    adversarial = experiment.adversarial
    if not adversarial.perturbation:
        return cross_entropy
    starts = generator(experiment.seed, "perturbation", round=task.round, client=task.client)
    return partial(
        adversarial_loss,
        perturbation=adversarial.perturbation,
        loss=adversarial.loss,
        fraction=adversarial.fraction,
        generator=starts,
    )


def respond(message: Message, trained: Trained) -> Message:
    """Build the reply: one flat update and two metrics, nothing else."""
    metrics = MetricRecord({"num-examples": trained.examples, "loss": trained.loss})
    content = RecordDict({"arrays": array_of(update=trained.update), "metrics": metrics})
    return Message(content, reply_to=message)


def _momentum(update: Tensor, beta: float, context: Context) -> Tensor:
    """M <- beta m + (1 - beta) update (Karimireddy et al., ICML 2021, section 5)."""
    if not beta:
        return update
    if MOMENTUM in context.state:
        update = beta * read_tensor(context.state, MOMENTUM, "m") + (1 - beta) * update
    context.state[MOMENTUM] = array_of(m=update)
    return update
