"""Several clients of one process at once: cohorts are trained as stacks, the rest one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from flwr.app import Context, Message

from clients import ensemble_member as ensemble
from clients import honest, malicious
from clients.local_objective import Stopwatch, stackable
from clients.node import ROLE, Node, open_node
from clients.redundancy import worker
from fedrobust.attacks import threat_model
from fedrobust.cohort import train_cohort
from fedrobust.cohort.train import CohortError
from fedrobust.flower import read_setting
from fedrobust.flower.adversary_grid import ADVERSARY
from fedrobust.flower.in_process import answer
from fedrobust.training import one_thread


def train_together(
    messages: Sequence[Message], contexts: Sequence[Context], *, keep: bool = True
) -> Iterator[Message | None]:
    """Answer the training messages of several clients, one reply a message, in order.

    With ``training.cohort`` = "off" each client trains when its reply is asked for; otherwise those
    that train honestly do it first, together. A client that raises costs its own reply: where
    cohorts cannot be trained the clients train one by one, and each fails or not on its own. The
    updates lie in memory that the process keeps, unless told otherwise: a reply holds until its
    client trains again.
    """
    if not messages:
        return
    if ensemble.NODE in messages[0].content:
        for message, context in zip(messages, contexts, strict=True):
            yield answer(ensemble.train, message, context)
        return
    node = open_node(contexts[0].run_config, contexts[0].node_config)
    files = bool(node.experiment.redundancy.name)
    with one_thread():
        ready = {} if files else _trained(node, messages, contexts, keep=keep)
        for i, (message, context) in enumerate(zip(messages, contexts, strict=True)):
            yield answer(partial(train_one, results=ready.get(i), keep=keep), message, context)


def train_one(
    message: Message,
    context: Context,
    *,
    results: honest.Result | None = None,
    keep: bool = False,
) -> Message | None:
    """Answer one training message as the client that this node is.

    Parameters
    ----------
    results
        What honest local training gave, where it is done already.
    keep
        Let the update of an honest client lie in memory that this process keeps.
    """
    if ensemble.NODE in message.content:
        return ensemble.train(message, context)
    node = open_node(context.run_config, context.node_config)
    if node.experiment.redundancy.name:
        return worker.respond(node, message, context)
    task = honest.read_task(node, message, context)
    if results is None and _malicious(node, task, message, context):
        return malicious.answer(node, task, message, context)
    images, labels = node.share(task.client)
    watch = Stopwatch()
    if results is None:
        plan = honest.lesson_of(node, task, context, images, labels, keep=keep)
        results, watch = honest.train_alone(node, task, plan), plan.watch
    trained = honest.finish(node, task, context, results, examples=len(labels), watch=watch)
    return honest.respond(message, trained)


def _malicious(node: Node, task: honest.Task, message: Message, context: Context) -> bool:
    """Whether a malicious client must act; before others' eyes it trains as an honest one.

    In simulation the experiment says who is malicious; on a real node its owner does, and no server
    can make a node attack whose owner says "honest".
    """
    role = context.node_config.get(ROLE)
    members = threat_model.members(node.experiment, round=task.round)
    if (task.client not in members) if role is None else (role != "malicious"):
        return False
    rehearses = read_setting(message.content, ADVERSARY, "task") == "rehearse"
    return not (rehearses and threat_model.kind(node.experiment.attack["name"]) == "craft")


def _trained(
    node: Node, messages: Sequence[Message], contexts: Sequence[Context], *, keep: bool
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
    members = [
        honest.lesson_of(
            node, tasks[i], contexts[i], *node.share(tasks[i].client), keep=keep
        ).member
        for i in places
    ]
    start = tasks[places[0]].vector.to(node.model.vector.device)
    try:
        results = train_cohort(node.model, start, members, cohort=cohort)
    except (RuntimeError, ValueError):
        if cohort == "vmap":
            raise
        return {}  # one by one, whoever caused it fails alone
    return dict(zip(places, results, strict=True))
