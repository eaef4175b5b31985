"""fedrobust's Flower client app: honest or malicious, one client or a cohort of them."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import honest, malicious
from clients.workshop import open_workshop
from fedrobust import __version__, adversary
from fedrobust.flower import serve_cohort
from fedrobust.flower.wire import PROTOCOL

app = ClientApp()


@app.train()  # type: ignore[arg-type]  # None is a client that stays silent
def train(message: Message, context: Context) -> Message | None:
    """Train one client, or every client of a cohort."""
    return serve_cohort(train_one, message, context)


@app.query("hello")  # type: ignore[arg-type]
def hello(message: Message, context: Context) -> Message | None:
    """Say which client this node is and which protocol it speaks."""
    return serve_cohort(greet, message, context)


def train_one(message: Message, context: Context) -> Message | None:
    """Answer one training message as the client that this node is."""
    workshop = open_workshop(context.run_config)
    task = honest.read_task(message, context)
    if task.client in adversary.members(workshop.experiment, round=task.round):
        return malicious.answer(workshop, task, message, context)
    images, labels = workshop.share(task.client)
    return honest.respond(message, honest.train(workshop, task, context, images, labels))


def greet(message: Message, context: Context) -> Message:
    """Answer the roll call."""
    words: dict[str, Any] = {
        "client": int(context.node_config.get("partition-id", -1)),
        "protocol": PROTOCOL,
        "version": __version__,
    }
    return Message(RecordDict({"hello": ConfigRecord(words)}), reply_to=message)
