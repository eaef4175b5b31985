"""Several clients of one process at once: cohorts are trained as stacks, the rest one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from flwr.app import Context, Message

from clients import honest, malicious
from clients import member as ensemble
from clients.workshop import Workshop, open_workshop
from fedrobust import adversary
from fedrobust.flower import read_setting
from fedrobust.flower.adversary_grid import ADVERSARY
from fedrobust.flower.in_process import answer
from fedrobust.training import one_thread, train_cohort


def train_together(
    messages: Sequence[Message], contexts: Sequence[Context]
) -> Iterator[Message | None]:
    """Answer the training messages of several clients, one reply a message, in order.

    With ``training.cohort`` = "off" each client trains when its reply is asked for; otherwise those
    that train honestly do it first, together. A client that raises costs its own reply: where
    cohorts cannot be trained the clients train one by one, and each fails or not on its own. The
    updates lie in memory that the process keeps: a reply holds until its client trains again.
    """
    if not messages:
        return
    if ensemble.NODE in messages[0].content:
        for message, context in zip(messages, contexts, strict=True):
            yield answer(ensemble.train, message, context)
        return
    workshop = open_workshop(contexts[0].run_config)
    ready = _trained(workshop, messages, contexts)
    for i, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        yield answer(partial(train_one, results=ready.get(i), keep=True), message, context)


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
    workshop = open_workshop(context.run_config)
    task = honest.read_task(message, context)
    if results is None and _malicious(workshop, task, message):
        return malicious.answer(workshop, task, message, context)
    images, labels = workshop.share(task.client)
    if results is None:
        member = honest.member(workshop, task, images, labels, keep=keep)
        results = honest.train_alone(workshop, task, member)
    trained = honest.finish(workshop, context, results, examples=len(labels))
    return honest.respond(message, trained)


def _malicious(workshop: Workshop, task: honest.Task, message: Message) -> bool:
    """Whether a malicious client must act; before others' eyes it trains as an honest one."""
    if task.client not in adversary.members(workshop.experiment, round=task.round):
        return False
    rehearses = read_setting(message.content, ADVERSARY, "task") == "rehearse"
    return not (rehearses and adversary.kind(workshop.experiment.attack["name"]) == "craft")


def _trained(
    workshop: Workshop, messages: Sequence[Message], contexts: Sequence[Context]
) -> dict[int, honest.Result]:
    """Train the honest clients among them as cohorts; nothing where that is switched off."""
    cohort = workshop.experiment.training.cohort
    if cohort == "off":
        return {}
    tasks = [honest.read_task(m, c) for m, c in zip(messages, contexts, strict=True)]
    places = [
        i
        for i, (task, message) in enumerate(zip(tasks, messages, strict=True))
        if not _malicious(workshop, task, message)
    ]
    if not places:
        return {}
    members = [
        honest.member(workshop, tasks[i], *workshop.share(tasks[i].client), keep=True)
        for i in places
    ]
    start = tasks[places[0]].vector.to(workshop.model.vector.device)
    try:
        with one_thread():
            results = train_cohort(workshop.model, start, members, cohort=cohort)
    except (RuntimeError, ValueError):
        if cohort == "vmap":
            raise
        return {}  # one by one, whoever caused it fails alone
    return dict(zip(places, results, strict=True))
