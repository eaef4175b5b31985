"""What a ``RobustStrategy`` is put together from, and the values that its rounds are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust.aggregation import Aggregator, Outcome
from fedrobust.flower import UpdateMatrix, payload
from fedrobust.training import StepState, take_step
from strategies.base import Row
from strategies.transport import Model, Transport

Step = Callable[[Tensor, Tensor, StepState, int], tuple[Tensor, StepState]]
Server = Mapping[str, Callable[[], Any]]  # what a rule may ask of the server's own data, by name


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """What a rule made of one round.

    Attributes
    ----------
    nodes, clients
        Whose replies were accepted, by client; ``clients`` are their places, which rules that
        remember each client's past go by.
    replies
        What was read from them.
    updates
        Their updates as the rule saw them, (n, d), or (n, d') in another form.
    outcome
        The aggregate, in that form, and each update's weight where the rule has weights.
    shares
        How much each client counted before the rule looked at it, (n,) shares of 1; None: alike.
    """

    server_round: int
    nodes: Sequence[int]
    clients: Sequence[int]
    replies: Sequence[Any]
    updates: Tensor
    outcome: Outcome
    shares: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round that is under way: what was sent, to whom, and where the updates will be."""

    number: int
    model: Model
    clients: Mapping[int, int]
    sent: tuple[Message, ...]
    matrix: UpdateMatrix
    grid: Grid | None = None

    @property
    def bytes_down(self) -> int:
        """Bytes of the arrays of all messages that were sent."""
        return sum(payload(message.content) for message in self.sent)


@dataclass(frozen=True)
class Memory:
    """What outlives a round: the rule's memory, and the server optimizer's moments."""

    rule: Any = None
    step: StepState = field(default_factory=StepState)


class Form(Protocol):
    """Another form of updates, which a rule is shown in the place of what was sent."""

    def seen(self, updates: Tensor, start: Tensor) -> Tensor:
        """Return updates (n, d) of the model ``start`` (d,) in that form, (n, d')."""

    def sent(self, aggregate: Tensor, start: Tensor) -> Tensor:
        """Return an aggregate (d',) as a step (d,) of the model ``start``."""

    def offered(self, server: Server, start: Tensor) -> Server:
        """Return what a rule may ask of the server's own data, in that form."""


def node_weights(aggregated: Aggregated) -> Row:
    """Return how much each node counted, in the rule and before it, where either is known."""
    told = {"weights": aggregated.outcome.weights, "client_weights": aggregated.shares}
    return {
        key: dict(zip(aggregated.nodes, found.tolist(), strict=True))
        for key, found in told.items()
        if found is not None
    }


def no_weights(nodes: Sequence[int], clients: Sequence[int], replies: Sequence[Any]) -> None:
    """Let every update count alike."""


def no_offers(vector: Tensor, server_round: int) -> None:
    """Offer a rule no data of the server's own: there are none."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a ``RobustStrategy`` is put together from; the laboratory brings its own.

    Attributes
    ----------
    rule
        Aggregates the updates.
    transport
        The form of models and updates.
    asked
        (round, grid) -> the nodes to ask, each with its place among the clients.
    step
        (model (d,), aggregate (d,), state, round) -> the stepped model and the next state.
    seed
        What the rule draws follows from it.
    deadline
        Seconds after which a message that nobody answered expires; None: Flower's default.
    min_replies
        With fewer accepted replies the model is kept.
    fitting
        (accepted, malformed replies) -> the rule to apply to so few; None: always ``rule``.
    restart
        (round, model (d,)) -> another model where a new phase of training begins, with all memory
        forgotten; else None.
    offers
        (model (d,), round) -> what a rule may ask of data that the server holds itself.
    form
        What the rule is shown in the place of the updates as they were sent; None: these.
    weigh
        (updates (n, d), replies) -> the updates that the rule sees.
    counted
        (nodes, clients, replies) -> how much each of them counts (n,), None: all alike.
    costs, report
        Columns of the round's row: of every round, and of one that was aggregated.
    """

    rule: Aggregator
    transport: Transport
    asked: Callable[[int, Grid], Mapping[int, int]]
    step: Step
    seed: int
    deadline: float | None = None
    min_replies: int = 1
    fitting: Callable[[int, int], Aggregator] | None = None
    restart: Callable[[int, Tensor], Tensor | None] = lambda server_round, vector: None
    offers: Callable[[Tensor, int], Server | None] = no_offers
    form: Form | None = None
    weigh: Callable[[Tensor, Sequence[Any]], Tensor] = lambda updates, replies: updates
    counted: Callable[[Sequence[int], Sequence[int], Sequence[Any]], Tensor | None] = no_weights
    costs: Callable[[Round, Sequence[Any]], Row] = lambda sent, replies: {}
    report: Callable[[Aggregated], Row] = node_weights

    def offered(self, start: Tensor, server_round: int) -> Server:
        """Return what the rule may ask, in the form in which it is shown the updates."""
        known: Server = {"layers": lambda: self.transport.layers, "model": lambda: start}
        server = {**known, **(self.offers(start, server_round) or {})}
        return server if self.form is None else self.form.offered(server, start)


def sgd(
    lr: float, momentum: float, vector: Tensor, aggregate: Tensor, state: StepState, _: int
) -> tuple[Tensor, StepState]:
    """Take one step of SGD at a constant rate."""
    return take_step(
        vector,
        aggregate,
        state,
        optimizer="sgd",
        lr=lr,
        momentum=momentum,
        schedule="constant",
        warmup=0,
        shapes=(),  # only layer-wise steps read them
    )
