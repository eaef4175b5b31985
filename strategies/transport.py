"""How a global model goes to the clients and their updates come back: the seam of a strategy.

``NamedLayers`` is what stock Flower apps send; the laboratory's own way is in
``strategies.flat_vectors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedrobust.flower import Rejected, payload
from fedrobust.flower.layers import STATISTICS, read_layers
from fedrobust.flower.reply_metrics import shared_metrics
from fedrobust.model_layers import Layers
from fedrobust.training import StepState

REPLIES = ("weights", "updates")


@dataclass(frozen=True)
class Model:
    """A global model as a strategy steps it.

    Attributes
    ----------
    vector
        Its coordinates, (d,): what a rule sees and the server's step changes.
    beside
        Values that are no coordinates of an update, (b,), such as the running statistics of
        normalisation layers; None where the model has none.
    """

    vector: Tensor
    beside: Tensor | None = None


class Reply(Protocol):
    """A reply that passed the screen."""

    @property
    def update(self) -> Tensor:
        """(d,): the direction that the server subtracts."""

    @property
    def size(self) -> int:
        """Bytes of its arrays."""


class Transport(Protocol):
    """What a strategy needs to know about the form of models and updates."""

    @property
    def layers(self) -> Layers:
        """Name and shape of each tensor of the coordinates, in order, once a model was opened."""

    def opened(self, arrays: ArrayRecord) -> Model:
        """Read the global model."""

    def contents(
        self,
        clients: Iterable[int],
        model: Model,
        state: StepState,
        config: Mapping[str, Any],
        server_round: int,
    ) -> dict[int, RecordDict]:
        """Return what each client is sent; those that are sent the same share one object."""

    def read(self, message: Message, model: Model) -> Any:
        """Read a reply to this model; raises ``Rejected``, and nothing else."""

    def heard(self, clients: Sequence[int], version: int) -> None:
        """Learn whose replies to the model of so many steps were accepted."""

    def as_sent(self, aggregate: Tensor, server_round: int) -> tuple[Tensor, Array | None]:
        """Return the aggregate as clients will see it, and the bytes that they will be sent."""

    def stepped(self, version: int, packet: Array | None) -> None:
        """Learn that the server has taken the step that led to a version."""

    def beside(self, model: Model, replies: Sequence[Any]) -> Tensor | None:
        """Return the values that are no coordinates, from the accepted replies."""

    def packed(self, model: Model) -> ArrayRecord:
        """Write the global model."""

    def metrics(self, replies: Sequence[Any]) -> MetricRecord | None:
        """Return what the clients report, for the log alone."""

    def forget(self) -> None:
        """Start anew: the model changed by more than a step."""

    def snapshot(self) -> dict[str, Any]:
        """Return what it remembers."""

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""


@dataclass(frozen=True)
class LayersReply:
    """A stock client's reply: its update (d,), the values beside it (b,), and its claims."""

    update: Tensor
    beside: Tensor | None
    size: int
    claims: RecordDict


@dataclass(frozen=True)
class _Layer:
    name: str
    dtype: str
    shape: tuple[int, ...]
    coordinate: bool

    @property
    def size(self) -> int:
        # Of the empty shape of a scalar layer numpy's product is the float 1.0 otherwise.
        return int(np.prod(self.shape, dtype=np.int64))


class NamedLayers:
    """Models as named layers, as ``ArrayRecord(model.state_dict())`` holds them.

    Floating layers are the coordinates of an update. Running statistics of normalisation layers
    and whole numbers (counters, masks) are not: each entry becomes the median over the clients, so
    that no single client decides it.

    Parameters
    ----------
    replies
        "weights": clients answer with their whole model, as stock Flower apps do. "updates": with
        their model minus the global one, layer by layer.
    largest
        An update with a greater magnitude than this is refused.
    """

    def __init__(self, *, replies: str, largest: float) -> None:
        self._whole = replies == "weights"
        self._largest = largest
        self._layers: tuple[_Layer, ...] = ()
        self._dtype = torch.float32

    @property
    def layers(self) -> Layers:
        """The floating layers of the model that was opened last."""
        return tuple((layer.name, layer.shape) for layer in self._layers if layer.coordinate)

    def opened(self, arrays: ArrayRecord) -> Model:
        """Read the global model.

        Raises
        ------
        ValueError
            If it has no floating layer.
        """
        values = {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
        self._layers = tuple(_layer(name, value) for name, value in values.items())
        if not any(layer.coordinate for layer in self._layers):
            names = ", ".join(values) or "nothing"
            raise ValueError(f"the model needs a floating layer to train, its arrays hold {names}")
        # A model in float64 is stepped in float64; half precision is stepped in float32.
        wide = any(layer.coordinate and layer.dtype == "float64" for layer in self._layers)
        self._dtype = torch.float64 if wide else torch.float32
        return self._model(values)

    def contents(
        self,
        clients: Iterable[int],
        model: Model,
        state: StepState,
        config: Mapping[str, Any],
        server_round: int,
    ) -> dict[int, RecordDict]:
        """Send everybody the model and ``server-round``, as Flower's own strategies do."""
        settings = ConfigRecord({**config, "server-round": server_round})
        content = RecordDict({"arrays": self.packed(model), "config": settings})
        return dict.fromkeys(clients, content)

    def read(self, message: Message, model: Model) -> LayersReply:
        """Read a reply, trusting none of its claims.

        Raises
        ------
        Rejected
            For an error reply; for another number of array records than one; for layers that are
            missing, extra, of another shape or type, or not finite; and for an update beyond the
            largest magnitude.
        """
        try:
            return self._read(message, model)
        except Rejected:
            raise
        except Exception as error:  # a hostile reply may break any accessor: it costs its vote
            raise Rejected(f"unreadable ({type(error).__name__}: {str(error)[:160]})") from error

    def heard(self, clients: Sequence[int], version: int) -> None:
        """Do nothing: every round sends the whole model to everybody."""

    def as_sent(self, aggregate: Tensor, server_round: int) -> tuple[Tensor, Array | None]:
        """Return the aggregate as it is."""
        return aggregate, None

    def stepped(self, version: int, packet: Array | None) -> None:
        """Do nothing."""

    def beside(self, model: Model, replies: Sequence[LayersReply]) -> Tensor | None:
        """Return the median over the clients of each value that is no coordinate."""
        rows = [reply.beside for reply in replies if reply.beside is not None]
        # The lower of two middle values, not their mean: counters and masks stay whole numbers.
        return torch.stack(rows).median(dim=0).values if rows else model.beside

    def packed(self, model: Model) -> ArrayRecord:
        """Write the model in the layers, types and order that it came in."""
        record, at, beside = ArrayRecord(), 0, 0
        for layer in self._layers:
            if layer.coordinate:
                part, at = model.vector[at : at + layer.size], at + layer.size
            else:
                assert model.beside is not None
                part = model.beside[beside : beside + layer.size]
                beside += layer.size
            record[layer.name] = Array(part.numpy().reshape(layer.shape).astype(layer.dtype))
        return record

    def metrics(self, replies: Sequence[LayersReply]) -> MetricRecord | None:
        """Return the medians of what more than half of the accepted clients report."""
        told = shared_metrics([reply.claims for reply in replies])
        return MetricRecord({k: v for record in told.values() for k, v in record.items()})

    def forget(self) -> None:
        """Do nothing."""

    def snapshot(self) -> dict[str, Any]:
        """Return nothing: the model is all there is."""
        return {}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Do nothing."""

    def _read(self, message: Message, model: Model) -> LayersReply:
        if message.has_error():
            raise Rejected(f"error reply: {' '.join(str(message.error.reason).split())[:200]}")
        records = list(message.content.array_records.values())
        if len(records) != 1:
            raise Rejected(f"{len(records)} array records, expected one")
        values = read_layers(records[0], {x.name: (x.dtype, x.shape) for x in self._layers})
        found = self._model(values)
        # The server subtracts an update; what clients send is a model, or the direction to add.
        update = model.vector - found.vector if self._whole else -found.vector
        beside = found.beside
        if beside is not None and model.beside is not None and not self._whole:
            beside = model.beside + beside
        claims = RecordDict(dict(message.content.metric_records.items()))
        greatest = float(update.abs().max())
        if not greatest <= self._largest:  # also where the difference overflows
            raise Rejected(f"a value of magnitude {greatest:.3g}, beyond {self._largest:.3g}")
        return LayersReply(update, beside, payload(message.content), claims)

    def _model(self, values: Mapping[str, Tensor]) -> Model:
        coordinates, others = [], []
        for layer in self._layers:
            value = values[layer.name].reshape(-1)
            if layer.coordinate:
                coordinates.append(value.to(self._dtype))
            else:
                others.append(value.double())  # whole numbers up to 2^53 are exact
        return Model(torch.cat(coordinates), torch.cat(others) if others else None)


def _layer(name: str, value: Tensor) -> _Layer:
    dtype = str(value.dtype).removeprefix("torch.")
    counts = not value.is_floating_point() or name.rpartition(".")[2] in STATISTICS
    return _Layer(name, dtype, tuple(value.shape), not counts)
