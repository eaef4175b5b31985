"""The clients of a federated run: cohorts are trained as stacks, the rest one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from logging import INFO

from flwr.app import Context, Message
from flwr.common import log

from clients import honest, malicious
from clients.local_objective import Stopwatch, stackable
from clients.node import ROLE, Node
from fedrobust.attacks import threat_model
from fedrobust.cohort import train_cohort
from fedrobust.cohort.train import CohortError
from fedrobust.flower import UpdateMatrix, read_setting
from fedrobust.flower.adversary_grid import ADVERSARY
from fedrobust.flower.in_process import answer
from fedrobust.training import one_thread

ALONE = "alone"  # what a node keeps: why its clients are no stack


def train_together(
    node: Node,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    matrix: UpdateMatrix | None = None,
) -> Iterator[Message | None]:
    """Answer the training messages of several clients, one reply a message, in order.

    With ``training.cohort`` = "off" each client trains when its reply is asked for; otherwise those
    that train honestly do it first, together. A client that raises costs its own reply: where
    cohorts cannot be trained the clients train one by one, and each fails or not on its own. Where
    a matrix is given, honest updates stand in its rows.
    """
    with one_thread():
        ready = _trained(node, messages, contexts, matrix) if messages else {}
        for i, (message, context) in enumerate(zip(messages, contexts, strict=True)):
            one = partial(train_one, node, results=ready.get(i), matrix=matrix)
            yield answer(one, message, context)


def train_one(
    node: Node,
    message: Message,
    context: Context,
    *,
    results: honest.Result | None = None,
    matrix: UpdateMatrix | None = None,
) -> Message | None:
    """Answer one training message as the client that this node is.

    Parameters
    ----------
    results
        What honest local training gave, where it is done already.
    matrix
        Where the client's update may be written.
    """
    task = honest.read_task(node, message, context)
    if results is None and _malicious(node, task, message, context):
        return malicious.answer(node, task, message, context, matrix)
    images, labels = node.share(task.client)
    watch = Stopwatch()
    if results is None:
        plan = honest.local_task(node, task, context, images, labels, matrix=matrix)
        results, watch = honest.train_alone(node, task, plan), plan.watch
    trained = honest.finish(
        node, task, context, results, examples=len(labels), watch=watch, matrix=matrix
    )
    return honest.respond(message, trained)


def _malicious(node: Node, task: honest.Task, message: Message, context: Context) -> bool:
    """Whether a malicious client must act; before others' eyes it trains as an honest one.

    In simulation the experiment says who is malicious; on a real node its owner does, and no server
    can make a node attack whose owner says "honest".
    """
    role = context.node_config.get(ROLE)
    members = threat_model.members(node.experiment, round=task.server_round)
    if (task.client not in members) if role is None else (role != "malicious"):
        return False
    rehearses = read_setting(message.content, ADVERSARY, "task") == "rehearse"
    return not (rehearses and threat_model.kind(node.experiment.attack["name"]) == "craft")


def _trained(
    node: Node,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    matrix: UpdateMatrix | None,
) -> dict[int, honest.Result]:
    """Train the honest clients among them as cohorts; nothing where that is switched off."""
    cohort = node.experiment.training.cohort
    if cohort == "off":
        return {}
    if not stackable(node, int(read_setting(messages[0].content, "config", "round"))):
        if cohort == "vmap":
            raise CohortError("training.cohort = 'vmap' is not possible with these settings")
        return {}
    tasks = [honest.read_task(node, m, c) for m, c in zip(messages, contexts, strict=True)]
    places = [
        i
        for i, (task, message) in enumerate(zip(tasks, messages, strict=True))
        if not _malicious(node, task, message, contexts[i])
    ]
    if not places:
        return {}
    members = [_member(node, tasks[i], contexts[i], matrix) for i in places]
    # One start for all: clients that keep replicas, whose starts may differ, are not stackable.
    start = tasks[places[0]].vector.to(node.model.vector.device)
    try:
        results = train_cohort(node.model, start, members, cohort=cohort)
    except (RuntimeError, ValueError) as error:
        if cohort == "vmap":
            raise
        _tell(node, error)
        return {}  # one by one, whoever caused it fails alone
    return dict(zip(places, results, strict=True))


def _tell(node: Node, error: Exception) -> None:
    """Log why clients train one by one, once a node: each round tries anew."""
    if node.kept.setdefault(ALONE, error) is error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        log(INFO, "clients with %s train one by one: %s", node.experiment.model, reason)


def _member(
    node: Node, task: honest.Task, context: Context, matrix: UpdateMatrix | None
) -> honest.Member:
    images, labels = node.share(task.client)
    return honest.local_task(node, task, context, images, labels, matrix=matrix).member
