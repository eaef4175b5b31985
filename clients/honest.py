"""The honest client: train on its own share, answer with an update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.lessons import Lesson, Watch, lesson
from clients.replica import global_model
from clients.workshop import Workshop
from fedrobust.batchnorm import load_statistics, read_statistics
from fedrobust.flower import TensorArray, array_of, read_setting, read_tensor
from fedrobust.stepping import fixed_in
from fedrobust.training import one_thread, train_cohort

MOMENTUM = "momentum"
STATISTICS = "statistics"
Result = tuple[Tensor, float]  # the update (d,) and its loss


@dataclass(frozen=True)
class Task:
    """One training message, read: the global model, the round, and whose turn it is.

    Attributes
    ----------
    statistics
        BatchNorm's running statistics (b,) to start from; empty without BatchNorm.
    """

    vector: Tensor
    round: int
    client: int
    statistics: Tensor


@dataclass(frozen=True)
class Trained:
    """What local training gave: the update (d,), and the claims that go with it.

    Attributes
    ----------
    write
        How the update travels.
    statistics
        Running statistics (b,) after training; empty without BatchNorm.
    times
        Seconds by metric, where the server asks for them.
    """

    update: Tensor
    examples: int
    loss: float
    write: Callable[[Tensor], Array] = TensorArray
    statistics: Tensor | None = None
    times: dict[str, float] = field(default_factory=dict)


def read_task(workshop: Workshop, message: Message, context: Context) -> Task:
    """Read a training message."""
    round = int(read_setting(message.content, "config", "round"))
    vector = global_model(workshop, message, context, round=round)
    client = int(context.node_config["partition-id"])
    return Task(vector, round, client, _statistics(workshop, message, context))


def train(
    workshop: Workshop, task: Task, context: Context, images: Tensor, labels: Tensor
) -> Trained:
    """Train on the given images and labels; worker momentum lives in the client's state."""
    plan = lesson_of(workshop, task, context, images, labels)
    results = train_alone(workshop, task, plan)
    return finish(workshop, task, context, results, examples=len(labels), watch=plan.watch)


def lesson_of(
    workshop: Workshop,
    task: Task,
    context: Context,
    images: Tensor,
    labels: Tensor,
    *,
    keep: bool = False,
) -> Lesson:
    """Prepare the client's local training; ``keep`` puts its update where the last one lay."""
    keeps = keep and not workshop.experiment.worker_momentum
    out = workshop.rows[task.client] if keeps else None
    return lesson(
        workshop,
        context,
        task.vector,
        images,
        labels,
        round=task.round,
        client=task.client,
        out=out,
    )


def train_alone(workshop: Workshop, task: Task, plan: Lesson) -> Result:
    """Train one client."""
    start = task.vector.to(workshop.model.vector.device)
    began = time.perf_counter()
    with one_thread(), _fixed(workshop, task.round):
        if len(workshop.statistics):
            load_statistics(workshop.model.module, task.statistics)
        result = train_cohort(workshop.model, start, [plan.member], cohort="off")[0]
    plan.watch.whole = time.perf_counter() - began
    return result


def finish(
    workshop: Workshop,
    task: Task,
    context: Context,
    results: Result,
    *,
    examples: int,
    watch: Watch,
) -> Trained:
    """Mix the update into the client's momentum, if it keeps one; say how it travels."""
    update, loss = results
    experiment = workshop.experiment
    statistics = workshop.statistics
    statistics = read_statistics(workshop.model.module) if len(statistics) else statistics
    if experiment.batchnorm["name"] == "local" and len(statistics):
        context.state[STATISTICS] = array_of(statistics=statistics)
    return Trained(
        _momentum(update, experiment.worker_momentum, context),
        examples,
        loss,
        partial(workshop.wire.write, round=task.round, client=task.client),
        statistics,
        watch.times() if experiment.server.times else {},
    )


def respond(message: Message, trained: Trained) -> Message:
    """Build the reply: one flat update and two metrics, nothing else that was not asked for."""
    record = ArrayRecord()
    began = time.perf_counter()
    record["update"] = trained.write(trained.update)
    times = trained.times
    if times:
        times = times | {"encode-seconds": time.perf_counter() - began}
    if trained.statistics is not None and len(trained.statistics):
        record["statistics"] = TensorArray(trained.statistics)
    metrics = MetricRecord({"num-examples": trained.examples, "loss": trained.loss, **times})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def _statistics(workshop: Workshop, message: Message, context: Context) -> Tensor:
    """Return the running statistics to start from: the client's own, or those that were sent."""
    if not len(workshop.statistics):
        return workshop.statistics
    if workshop.experiment.batchnorm["name"] != "local":
        return read_tensor(message.content, "arrays", "statistics")
    if STATISTICS in context.state:
        return read_tensor(context.state, STATISTICS, "statistics")
    return workshop.statistics


@contextmanager
def _fixed(workshop: Workshop, round: int) -> Iterator[None]:
    """Take no gradient of layers that partial fine-tuning leaves alone."""
    model = workshop.model
    left = fixed_in(workshop.experiment, round, model.sizes)
    still = list(model.module.parameters())[:-2] if left else []
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)


def _momentum(update: Tensor, beta: float, context: Context) -> Tensor:
    """M <- beta m + (1 - beta) update (Karimireddy et al., ICML 2021, section 5)."""
    if not beta:
        return update
    if MOMENTUM in context.state:
        update = beta * read_tensor(context.state, MOMENTUM, "m") + (1 - beta) * update
    context.state[MOMENTUM] = array_of(m=update)
    return update
