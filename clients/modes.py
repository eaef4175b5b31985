"""What a node answers in each mode of an experiment: one table, one entry a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from flwr.app import Context, Message

from clients import dispatch
from clients.ensemble import member
from clients.ensemble.node import EnsembleNode, make_ensemble_node
from clients.node import Host, Node, make_node
from clients.redundancy import worker
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import UpdateMatrix
from fedrobust.flower.cohort_host import Handler
from fedrobust.flower.in_process import Together, answer
from fedrobust.training import one_thread
from fedrobust.training.precision import switched


@dataclass(frozen=True)
class Handlers:
    """What one node answers in one run.

    Attributes
    ----------
    train
        A "train" message: (message, context) -> reply, or None for silence.
    predict
        A "query.predict" message.
    together
        The "train" messages of several clients that live in one process.
    """

    train: Handler
    predict: Handler
    together: Together


def handlers_for(experiment: Experiment, host: Host | None = None) -> Handlers:
    """Set an experiment up on one node: load its data, build its model, make its handlers.

    A node that computes on a GPU switches TF32 off, which PyTorch has on for convolutions.
    """
    host = host or Host()
    if host.device.startswith("cuda"):
        switched(False, False)
    return MODES[experiment.mode](experiment, host)


def one_by_one(handler: Handler) -> Together:
    """Let clients of one process answer one after the other; what one raises is its own reply."""

    def together(
        messages: Sequence[Message], contexts: Sequence[Context], matrix: UpdateMatrix | None
    ) -> Iterator[Message | None]:
        with one_thread():
            for message, context in zip(messages, contexts, strict=True):
                yield answer(handler, message, context)

    return together


def no_query(message: Message, context: Context) -> Message:
    """Refuse a query: only members of an ensemble have predictions of their own.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError("only members of an ensemble answer queries")


def federated(node: Node) -> Handlers:
    """Answer as the clients of a federated run."""
    train = partial(dispatch.train_one, node)
    return Handlers(train, no_query, partial(dispatch.train_together, node))


def redundancy(node: Node) -> Handlers:
    """Answer as workers that compute gradients of files."""
    train = partial(worker.respond, node)
    return Handlers(train, no_query, one_by_one(train))


def ensemble(node: EnsembleNode) -> Handlers:
    """Answer as members of an ensemble."""
    train = partial(member.train, node)
    return Handlers(train, partial(member.predict, node), one_by_one(train))


MODES: dict[str, Callable[[Experiment, Host], Handlers]] = {
    "federated": lambda experiment, host: federated(make_node(experiment, host)),
    "redundancy": lambda experiment, host: redundancy(make_node(experiment, host)),
    "ensemble": lambda experiment, host: ensemble(make_ensemble_node(experiment, host)),
}
