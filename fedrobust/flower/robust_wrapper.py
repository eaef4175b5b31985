"""Our rules inside anybody's Flower app: a robust rule in front of any strategy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedMedian,
    FedTrimmedAvg,
    MultiKrum,
    Result,
    Strategy,
)

from fedrobust.flower.evaluation_replies import alike
from fedrobust.flower.model_replies import Sent, refuse_secure_aggregation
from fedrobust.flower.reply_aggregation import Aggregated, ReplyAggregator
from fedrobust.flower.rule_spelling import Rule
from fedrobust.spec import Spec
from fedrobust.text import printable

if TYPE_CHECKING:
    import pandas as pd

ROBUST = (MultiKrum, Bulyan, FedMedian, FedTrimmedAvg)  # Krum is a MultiKrum
PRIVATE = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
)
SHADOWED = ("configure_train", "aggregate_train", "aggregate_evaluate")


class Robust(Strategy):
    """Put a rule of fedrobust between the clients and a Flower strategy.

    The clients' replies are screened, turned into updates (what came back minus what was sent) and
    aggregated by the rule. The strategy gets as many replies as were accepted, all of them holding
    the aggregate: its server optimizer, sampling, minimum numbers and configuration work as before.

    Parameters
    ----------
    strategy
        Any strategy of ``flwr.serverapp.strategy`` or one of your own, also with a ``start`` of
        its own, several ArrayRecords, or other record keys.
    rule, pre
        A rule and its pre-aggregators: ``"nnm+krum:f=2"``, ``{"name": "krum", "f": 2}``, or a
        function (n, d) -> (d,).
    seed
        For rules that draw; None draws one from the system's entropy.
    weights
        How much each node counts: "equal"; ``{"name": "attested", "table": {node id: weight}}`` or
        ``{"name": "attested", "file": "weights.toml"}``; ``{"name": "truncated", "share": 0.3}``
        over what the nodes claim; "claimed" with the plain mean. A rule without a weighted form
        refuses. See ``fedrobust.aggregation.WEIGHTINGS``.

    Raises
    ------
    SpecError
        For an unknown rule or setting, or a rule that cannot be weighted so.
    TypeError
        For a strategy of Flower's older API (``flwr.server.strategy``), or no strategy at all.
    ValueError
        In the first round, if the strategy asks fewer nodes than the rule needs.

    Notes
    -----
    A reply whose records, layers or shapes are not those of most replies, or with a value that is
    not finite, loses its vote and is logged. With too few left for the rule the model is kept.
    Running statistics of normalisation layers and integer or boolean arrays are no coordinates:
    each entry becomes the median over the clients, past the strategy's server optimizer. What
    clients claim (``num-examples``) weighs nothing unless ``weights`` says so; their
    metrics reach the strategy as medians.

    Differential privacy of the server calibrates its noise for a mean: neither around nor inside
    ``Robust`` does it give the epsilon that it states.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        rule: Rule,
        pre: Sequence[Spec] = (),
        seed: int | None = None,
        weights: Spec = "equal",
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise TypeError(_no_strategy(strategy))
        self._inner = strategy
        claim = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._core = ReplyAggregator(rule, pre, seed, weights, claim)
        self._sent = Sent({}, {})
        self._asked: list[Message] = []  # of the evaluation
        self._checked = self._leading = False
        # Bound now: under ``_in_front`` the strategy's own names lead back to this object.
        self._configure_train = strategy.configure_train
        self._aggregate_train = strategy.aggregate_train
        self._aggregate_evaluate = strategy.aggregate_evaluate
        _warn_about(strategy, self._core.name)

    @property
    def history(self) -> pd.DataFrame:
        """What became of every reply: round, node, accepted, weight, reason.

        With weights also ``client_weight``, each node's share of 1 before the rule.
        """
        return self._core.history

    def summary(self) -> None:
        """Log the rule and the strategy's own summary."""
        log(INFO, "\t├──> Robust: %s", self._core.name)
        self._inner.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy's own ``start``; see ``flwr.serverapp.strategy.Strategy.start``.

        Where no round took a step the result holds the initial arrays, and a warning says why.
        """
        self._core.reset()
        self._checked, self._leading = False, True
        before = len(self.history)
        try:
            if type(self._inner).start is Strategy.start:
                result = super().start(grid, initial_arrays, *args, **kwargs)
            else:
                with self._in_front():
                    result = self._inner.start(grid, initial_arrays, *args, **kwargs)
        finally:
            self._leading = False
        if self._core.steps == 0:
            _warn_nothing_learned(self.history[before:])
        if isinstance(result, Result) and not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask whom the strategy asks."""
        asked = list(self._configure_train(server_round, arrays, config, grid))
        refuse_secure_aggregation(asked)
        self._sent = Sent.of(asked)
        if asked and not self._checked:
            self._core.check(
                len(asked)
            )  # a rule that can never run is an error, not a frozen model
            self._checked = True
            if not self._leading:
                log(WARNING, DRIVEN)
        return asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate with the rule; hand the strategy as many replies that all hold the outcome."""
        result = self._core.aggregate(self._sent, replies, server_round)
        for node, reason in sorted(result.refused.items()):
            log(INFO, "reply of node %s refused: %s", node, reason)
        if result.kept:
            log(WARNING, "round %s keeps the model: %s", server_round, result.kept)
            return None, self._with_counts(None, result)
        arrays, metrics = self._aggregate_train(server_round, result.replies)
        return _past_the_optimizer(arrays, result), self._with_counts(metrics, result)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask whom the strategy asks."""
        asked = self._inner.configure_evaluate(server_round, arrays, config, grid)
        self._asked = list(asked)
        return self._asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Hand the strategy replies that all report the medians of what the clients report.

        Where most of them report what the strategy cannot average, the round has no evaluation.
        """
        made = alike(Sent.of(self._asked), replies)
        for node, reason in sorted(made.refused.items()):
            log(INFO, "evaluation of node %s refused: %s", node, reason)
        try:
            return self._aggregate_evaluate(server_round, made.replies)
        except (InconsistentMessageReplies, ZeroDivisionError) as error:
            log(WARNING, "round %s has no evaluation: %s", server_round, printable(error))
            return None

    @contextmanager
    def _in_front(self) -> Iterator[None]:
        """Let the strategy's own ``start`` call this object's methods in the place of its own."""
        own = {name: vars(self._inner)[name] for name in SHADOWED if name in vars(self._inner)}
        vars(self._inner).update({name: vars(type(self))[name].__get__(self) for name in SHADOWED})
        try:
            yield
        finally:
            for name in SHADOWED:
                vars(self._inner).pop(name, None)
            vars(self._inner).update(own)

    def _with_counts(self, metrics: MetricRecord | None, result: Aggregated) -> MetricRecord:
        told = MetricRecord(dict(metrics.items()) if metrics is not None else {})
        told["robust-accepted"] = len(self._sent.messages) - len(result.refused)
        told["robust-refused"] = len(result.refused)
        told["robust-steps"] = self._core.steps
        return told


DRIVEN = (
    "Robust is driven by another strategy or loop. If that is differential privacy: its noise is "
    "calibrated for a mean, so the epsilon that it states does not hold for a robust rule"
)


def _past_the_optimizer(arrays: ArrayRecord | None, result: Aggregated) -> ArrayRecord | None:
    """Put statistics and integers into what the strategy made, in their own types.

    A server optimizer would take a step on them: momentum makes a variance negative, an average
    turns int64 into float64, which no client answers with.
    """
    if arrays is None:
        return None
    for (_, name), value in result.others.items():
        if name in arrays and tuple(arrays[name].shape) == value.shape:
            arrays[name] = Array(np.asarray(value))
    return arrays


def _no_strategy(given: Any) -> str:
    if type(given).__module__.startswith("flwr.server.") or hasattr(given, "configure_fit"):
        return (
            f"{type(given).__name__} is a strategy of Flower's older API (flwr.server.strategy): "
            "put the rule in front of the grid with fedrobust.flower.RobustGrid(grid, rule=...), "
            "or take the strategy of the same name from flwr.serverapp.strategy"
        )
    return f"Robust needs a strategy of flwr.serverapp.strategy, got {type(given).__name__}"


def _warn_about(strategy: Strategy, rule: str) -> None:
    name = type(strategy).__name__
    if isinstance(strategy, ROBUST):
        log(
            WARNING,
            "%s is a robust rule itself: behind %s it sees equal replies only and does nothing "
            "more than an average; FedAvg does the same",
            name,
            rule,
        )
    if isinstance(strategy, PRIVATE):
        log(
            WARNING,
            "%s calibrates its noise for a mean of clipped updates: the epsilon that it states "
            "does not hold behind %s",
            name,
            rule,
        )


def _warn_nothing_learned(history: pd.DataFrame) -> None:
    reasons = history.reason[history.reason != ""].value_counts()
    why = f": {reasons.index[0]} ({reasons.iloc[0]} replies)" if len(reasons) else ""
    text = f"no round took a step; the result holds the initial arrays{why}"
    log(WARNING, text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)
