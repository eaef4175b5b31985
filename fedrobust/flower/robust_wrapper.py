"""Our rules inside anybody's Flower app: a robust rule in front of any strategy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from logging import INFO, WARNING

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrobust import aggregation
from fedrobust.failures import Refusal
from fedrobust.flower.layers import STATISTICS, read_layers
from fedrobust.secret import fresh
from fedrobust.seeds import generator
from fedrobust.spec import Spec


class Robust(Strategy):
    """Put a rule of fedrobust between the clients and a Flower strategy.

    The clients' models are screened, turned into updates (model minus the global one), aggregated
    by the rule, and handed to the strategy as the one reply of one client: its server optimizer,
    sampling and configuration work as before.

    Parameters
    ----------
    strategy
        Any strategy of ``flwr.serverapp.strategy`` or one of your own that averages whole models.
    rule, pre
        A rule and its pre-aggregators, as everywhere: ``{"name": "krum", "f": 2}``.
    seed
        For rules that draw. None draws one from the system's entropy: whoever could foresee the
        draws could aim at them.

    Raises
    ------
    SpecError
        For an unknown rule or setting.

    Notes
    -----
    A reply with other layers, types or shapes than the global model, or with values that are not
    finite, loses its vote and is logged. With too few left for the rule the model is kept. Running
    statistics of normalisation layers and integer arrays are no coordinates of an update: each
    entry becomes the median over the clients. What clients claim (``num-examples``) weighs nothing;
    their other metrics reach the strategy as medians.
    """

    def __init__(
        self, strategy: Strategy, *, rule: Spec, pre: Sequence[Spec] = (), seed: int | None = None
    ) -> None:
        self._inner = strategy
        self._rule = aggregation.build(rule, pre=pre)
        self._memory = self._rule.init()
        self._seed = fresh() if seed is None else seed
        self._global: dict[str, Tensor] = {}
        self._sent: list[Message] = []

    def summary(self) -> None:
        """Log the strategy's own summary."""
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask whom the strategy asks."""
        self._global = {name: torch.from_numpy(a.numpy()) for name, a in arrays.items()}
        self._sent = list(self._inner.configure_train(server_round, arrays, config, grid))
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate with the rule; hand the outcome to the strategy as one reply."""
        asked = {m.metadata.dst_node_id for m in self._sent}
        heard: dict[int, tuple[dict[str, Tensor], MetricRecord]] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in asked:
                continue  # one vote a node, and only where it was asked
            asked.discard(node)
            try:
                (metrics,) = reply.content.metric_records.values()
                heard[node] = self._read(reply), metrics
            except Exception as error:  # a hostile reply may break any accessor: it loses its vote
                log(INFO, "reply of node %s refused: %s", node, str(error)[:200])
        votes = [heard[node] for node in sorted(heard)]  # the order of replies must not matter
        try:
            aggregate = self._aggregate([model for model, _ in votes], server_round)
        except Refusal as error:  # the rule's own refusal
            log(WARNING, "round %s keeps the model: %s", server_round, error)
            return None, None
        return self._inner.aggregate_train(
            server_round, [self._one_reply(aggregate, [told for _, told in votes])]
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask whom the strategy asks."""
        return self._inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave the clients' evaluation to the strategy."""
        return self._inner.aggregate_evaluate(server_round, replies)

    def _read(self, reply: Message) -> dict[str, Tensor]:
        if reply.has_error():
            raise ValueError(f"error reply: {reply.error.reason}")
        (record,) = reply.content.array_records.values()
        expected = {
            name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
            for name, value in self._global.items()
        }
        return read_layers(record, expected)

    def _aggregate(self, models: list[dict[str, Tensor]], server_round: int) -> dict[str, Tensor]:
        if not models:
            raise Refusal("no reply was left to aggregate")
        voted = [name for name, value in self._global.items() if _is_coordinate(name, value)]
        start = _flat(self._global, voted)
        updates = torch.stack([_flat(model, voted) - start for model in models])
        source = generator(self._seed, "rule", round=server_round)
        outcome = self._rule.apply(updates, self._memory, source)
        self._memory = outcome.state
        result = {
            name: torch.stack([m[name].to(self._global[name].dtype) for m in models])
            .median(dim=0)
            .values
            for name in self._global
            if name not in voted
        }
        pieces = (start + outcome.aggregate).split([self._global[name].numel() for name in voted])
        for name, piece in zip(voted, pieces, strict=True):
            result[name] = piece.view(self._global[name].shape).to(self._global[name].dtype)
        return {name: result[name] for name in self._global}

    def _one_reply(self, model: dict[str, Tensor], metrics: list[MetricRecord]) -> Message:
        record = ArrayRecord()
        for name, value in model.items():
            record[name] = Array(value.numpy())
        told = _medians(metrics) | {getattr(self._inner, "weighted_by_key", "num-examples"): 1}
        key = getattr(self._inner, "arrayrecord_key", "arrays")
        content = RecordDict({key: record, "metrics": MetricRecord(told)})
        return Message(content, reply_to=self._sent[0])


def _is_coordinate(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and name.rpartition(".")[2] not in STATISTICS


def _flat(model: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([model[name].reshape(-1).float() for name in names])


def _medians(metrics: list[MetricRecord]) -> dict[str, float]:
    """Return the median of each number that every client reports."""
    if not metrics:
        return {}
    shared = set.intersection(*(set(record.keys()) for record in metrics))
    told = {}
    for key in sorted(shared):
        values = [record[key] for record in metrics]
        if all(isinstance(value, int | float) for value in values):
            told[key] = float(torch.tensor(values, dtype=torch.float64).median())
    return told
