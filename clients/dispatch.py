"""The clients of a federated run: cohorts are trained as stacks, the rest one by one."""

from __future__ import annotations

import time
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
AHEAD = 16  # clients that are prepared, trained and answered for in turns
LONGEST = 0.02  # seconds that training may run ahead of the reply that is asked for
Plan = tuple[honest.Task, honest.LocalTask]


def train_together(
    node: Node,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    matrix: UpdateMatrix | None = None,
) -> Iterator[Message | None]:
    """Answer the training messages of several clients, one reply a message, in order.

    One by one, a client trains when its reply is asked for, small models a few clients ahead
    (``_ahead``); where they train as stacks, those that train honestly do it first, together. A
    client that raises costs its own reply: where cohorts cannot be trained the clients train one by
    one, and each fails or not on its own. Where a matrix is given, honest updates stand in its
    rows.
    """
    with one_thread():
        ready = _trained(node, messages, contexts, matrix) if messages else {}
        ahead = bool(messages) and not ready and _independent(node, messages[0], matrix)
        asked = list(zip(messages, contexts, strict=True))
        plans: dict[int, Plan] = {}
        for i, (message, context) in enumerate(asked):
            if ahead and i not in ready:
                if i > max(plans, default=-1):
                    plans = _plans(node, asked[i : i + AHEAD], matrix, first=i)
                ready = _ahead(node, plans, i)
            one = partial(train_one, node, results=ready.get(i), matrix=matrix)
            yield answer(one, message, context)


def _independent(node: Node, message: Message, matrix: UpdateMatrix | None) -> bool:
    """Whether a client may train before the one before it was answered for.

    Its update then waits in its own row, and nothing else is left behind.
    """
    if matrix is None or node.experiment.worker_momentum:
        return False
    return stackable(node, int(read_setting(message.content, "config", "round")))


def _plans(
    node: Node,
    asked: Sequence[tuple[Message, Context]],
    matrix: UpdateMatrix | None,
    *,
    first: int,
) -> dict[int, Plan]:
    """Prepare the clients up to the first that is malicious, whose row is behind theirs."""
    plans: dict[int, Plan] = {}
    for i, (message, context) in enumerate(asked, first):
        try:
            task = honest.read_task(node, message, context)
            if _malicious(node, task, message, context):
                break
            images, labels = node.share(task.client)
            plans[i] = task, honest.local_task(node, task, context, images, labels, matrix=matrix)
        except Exception:  # it fails once more in its turn, where that is its reply
            break
    return plans


def _ahead(node: Node, plans: dict[int, Plan], first: int) -> dict[int, honest.Result]:
    """Train the next of some clients, for a moment; what each one gives is what it gives alone.

    After a client's training the processor's caches hold its numbers: preparing and answering for
    the next one then takes five times as long as for several in a row. For a network of 80 k
    parameters that is a third of its training.
    """
    ready: dict[int, honest.Result] = {}
    end = time.monotonic() + LONGEST
    for i in range(first, max(plans, default=-1) + 1):
        if i not in plans:
            break
        try:
            ready[i] = honest.train_alone(node, *plans[i])
        except Exception:  # it fails once more in its turn, where that is its reply
            del plans[i]
            break
        if time.monotonic() > end:
            break
    return ready


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
