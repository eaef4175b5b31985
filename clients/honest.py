"""The honest client: train on its own share, answer with an update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from clients.local_objective import LocalTask, Stopwatch, objective
from clients.node import Node
from clients.replica import global_model
from fedrobust.cohort import train_cohort
from fedrobust.flower import TensorArray, UpdateMatrix, array_of, read_setting, read_tensor
from fedrobust.models.batchnorm import load_statistics, read_statistics
from fedrobust.seeds import derive, global_generators
from fedrobust.training import one_thread
from fedrobust.training.server_optimizer import fixed_in
from fedrobust.vector import trainable

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
    server_round: int
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


def read_task(node: Node, message: Message, context: Context) -> Task:
    """Read a training message."""
    server_round = int(read_setting(message.content, "config", "round"))
    vector = global_model(node, message, context, server_round=server_round)
    client = int(context.node_config["partition-id"])
    return Task(vector, server_round, client, _statistics(node, message, context))


def train(
    node: Node,
    task: Task,
    context: Context,
    images: Tensor,
    labels: Tensor,
    *,
    matrix: UpdateMatrix | None = None,
) -> Trained:
    """Train on the given images and labels; worker momentum lives in the client's state."""
    plan = local_task(node, task, context, images, labels, matrix=matrix)
    results = train_alone(node, task, plan)
    return finish(
        node, task, context, results, examples=len(labels), watch=plan.watch, matrix=matrix
    )


def local_task(
    node: Node,
    task: Task,
    context: Context,
    images: Tensor,
    labels: Tensor,
    *,
    matrix: UpdateMatrix | None = None,
) -> LocalTask:
    """Prepare the client's local training; with a matrix its update is written into its row."""
    # With worker momentum the update is mixed into another vector: a row would hold nothing.
    writes = matrix is not None and not node.experiment.worker_momentum
    out = matrix.row(task.client, node.model.vector) if matrix is not None and writes else None
    where = {"server_round": task.server_round, "client": task.client}
    return objective(node, context, task.vector, images, labels, out=out, **where)


def train_alone(node: Node, task: Task, plan: LocalTask) -> Result:
    """Train one client."""
    start = task.vector.to(node.model.vector.device)
    began = time.perf_counter()
    with one_thread(), _fixed(node, task.server_round), _drawing(node, task):
        if len(node.statistics):
            # The scratch model still has those of the client that trained before.
            load_statistics(node.model.module, task.statistics)
        result = train_cohort(node.model, start, [plan.member], cohort="off")[0]
    plan.watch.whole = time.perf_counter() - began
    return result


def finish(
    node: Node,
    task: Task,
    context: Context,
    results: Result,
    *,
    examples: int,
    watch: Stopwatch,
    matrix: UpdateMatrix | None = None,
) -> Trained:
    """Mix the update into the client's momentum, if it keeps one; say how it travels."""
    update, loss = results
    experiment = node.experiment
    statistics = node.statistics
    # Now: the next client to train overwrites the scratch model.
    statistics = read_statistics(node.model.module) if len(statistics) else statistics
    if experiment.batchnorm["name"] == "local" and len(statistics):
        context.state[STATISTICS] = array_of(statistics=statistics)
    return Trained(
        _momentum(update, experiment.worker_momentum, context),
        examples,
        loss,
        _writer(node, task, matrix),
        statistics,
        watch.times() if experiment.server.times else {},
    )


def _writer(node: Node, task: Task, matrix: UpdateMatrix | None) -> Callable[[Tensor], Array]:
    """Return how the update becomes an array: the matrix's row, or as updates travel."""
    travels = partial(node.wire.write, round=task.server_round, client=task.client)
    # What is quantised travels as bytes, which no row of floats can stand for.
    if matrix is None or node.wire.codec is not None:
        return travels
    return lambda update: matrix.array(task.client, update) or travels(update)


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


def _statistics(node: Node, message: Message, context: Context) -> Tensor:
    """Return the running statistics to start from: the client's own, or those that were sent."""
    if not len(node.statistics):
        return node.statistics
    if node.experiment.batchnorm["name"] != "local":
        return read_tensor(message.content, "arrays", "statistics")
    if STATISTICS in context.state:
        return read_tensor(context.state, STATISTICS, "statistics")
    return node.statistics


def _drawing(node: Node, task: Task) -> AbstractContextManager[None]:
    """Seed torch's own generators where a model may draw from them, as dropout does."""
    if not node.draws:
        return nullcontext()
    device = node.model.vector.device
    seed = derive(node.experiment.seed, "dropout", round=task.server_round, client=task.client)
    return global_generators(seed, [device] if device.type == "cuda" else [])


def _fixed(node: Node, server_round: int) -> AbstractContextManager[None]:
    """Take no gradient of layers that partial fine-tuning leaves alone."""
    model = node.model
    left = fixed_in(node.experiment, server_round, model.sizes)
    # The last two are the weight and bias of the last layer, which ``fixed_in`` leaves free.
    return (
        _without_gradients(list(trainable(model.module).values())[:-2]) if left else nullcontext()
    )


@contextmanager
def _without_gradients(still: list[nn.Parameter]) -> Iterator[None]:
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
