"""fedrobust's Flower client app: honest or malicious, one client or a cohort of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.modes import Handlers
from clients.node import ROLE
from clients.registry import handlers_of
from fedrobust.cores import pin_from_environment
from fedrobust.flower import UpdateMatrix, serve_cohort
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.version import __version__


def make_app(handlers: Callable[[Context], Handlers]) -> ClientApp:
    """Make a client app of handlers.

    Parameters
    ----------
    handlers
        Whose they are follows from the context: in one process, where they are made once, it is
        ``lambda context: made``; Ray workers and SuperNodes look them up by their run.
    """
    made = ClientApp()

    @made.train()  # type: ignore[arg-type]  # None is a client that stays silent
    def train(message: Message, context: Context) -> Message | None:
        """Train one client, or every client of a cohort."""
        own = handlers(context)
        # A real node's owner gives it a role; no server makes such a node open a file.
        shares = ROLE not in context.node_config
        return serve_cohort(own.train, message, context, together=own.together, shares=shares)

    @made.query("hello")  # type: ignore[arg-type]
    def hello(message: Message, context: Context) -> Message | None:
        """Say which client this node is and which protocol it speaks."""
        return serve_cohort(greet, message, context)

    @made.query("predict")  # type: ignore[arg-type]
    def predict(message: Message, context: Context) -> Message | None:
        """Answer a query of distributed inference, for one member or for each of a cohort."""
        return serve_cohort(handlers(context).predict, message, context)

    return made


def greet(message: Message, context: Context) -> Message:
    """Answer the roll call."""
    words: dict[str, Any] = {
        # -1 is nobody's place: the server then gives the node a free one.
        "client": int(context.node_config.get("partition-id", -1)),
        "protocol": PROTOCOL,
        "version": __version__,
    }
    return Message(RecordDict({"hello": ConfigRecord(words)}), reply_to=message)


def _kept(context: Context) -> Handlers:
    pin_from_environment()
    return handlers_of(context)


def train_together(
    messages: Sequence[Message], contexts: Sequence[Context], matrix: UpdateMatrix | None = None
) -> Iterable[Message | None]:
    """Answer the training messages of several clients of one run in this process."""
    return handlers_of(contexts[0]).together(messages, contexts, matrix) if messages else []


app = make_app(_kept)
