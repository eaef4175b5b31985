"""fedrobust's Flower client app: honest or malicious, one client or a cohort of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import ensemble_member
from clients.dispatch import train_one, train_together
from fedrobust.cores import pin_from_environment
from fedrobust.flower import serve_cohort
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.training import one_thread
from fedrobust.version import __version__

__all__ = ["app", "train_together"]

app = ClientApp()


@app.train()  # type: ignore[arg-type]  # None is a client that stays silent
@one_thread()
def train(message: Message, context: Context) -> Message | None:
    """Train one client, or every client of a cohort."""
    pin_from_environment()
    leaving = partial(train_together, keep=False)  # as bytes: what was kept would be held twice
    return serve_cohort(train_one, message, context, together=leaving)


@app.query("hello")  # type: ignore[arg-type]
def hello(message: Message, context: Context) -> Message | None:
    """Say which client this node is and which protocol it speaks."""
    return serve_cohort(greet, message, context)


@app.query("predict")  # type: ignore[arg-type]
@one_thread()
def predict(message: Message, context: Context) -> Message | None:
    """Answer a query of distributed inference, for one member or for each of a cohort."""
    return serve_cohort(ensemble_member.predict, message, context)


def greet(message: Message, context: Context) -> Message:
    """Answer the roll call."""
    words: dict[str, Any] = {
        "client": int(context.node_config.get("partition-id", -1)),
        "protocol": PROTOCOL,
        "version": __version__,
    }
    return Message(RecordDict({"hello": ConfigRecord(words)}), reply_to=message)
