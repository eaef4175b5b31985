"""The laboratory's transport: one flat vector each way, quantised where the experiment asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedrobust.experiment.schema import Experiment
from fedrobust.flower import array_of, screen, tensor_of, wire_of
from fedrobust.flower.screening import Reply
from fedrobust.model_layers import Layers
from fedrobust.training import StepState
from strategies.batchnorm_statistics import averaged, statistics_down
from strategies.downlink import Downlink
from strategies.transport import Model

SERVER = -1  # the server's place where a client's number is asked for


class FlatVectors:
    """One array ``model`` (d,) down and one array ``update`` (d,) up.

    BatchNorm's running statistics travel beside them. With replicas the step goes down in the place
    of the model, in the very bytes that the server steps with.

    Parameters
    ----------
    experiment
        Its compression, its policy for BatchNorm, and what the server accepts.
    layers
        Name and shape of each parameter tensor of the model.
    most_examples
        Size of the whole training set; no reply may claim more.
    variances
        Which running statistics are variances, (b,); empty without BatchNorm.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        layers: Layers,
        most_examples: int,
        variances: Tensor | None = None,
    ) -> None:
        self._experiment = experiment
        self._most_examples = most_examples
        self._variances = variances
        self._wire = wire_of(experiment, tuple(math.prod(shape) for _, shape in layers))
        self.layers = layers
        self._downlink = Downlink(replicas=experiment.compression.replicas)

    def opened(self, arrays: ArrayRecord) -> Model:
        """Read the global model."""
        beside = tensor_of(arrays["statistics"]) if "statistics" in arrays else None
        return Model(tensor_of(arrays["model"]), beside)

    def contents(
        self,
        clients: Iterable[int],
        model: Model,
        state: StepState,
        config: Mapping[str, Any],
        server_round: int,
    ) -> dict[int, RecordDict]:
        """Send each client what it lacks."""
        return self._downlink.contents(
            clients,
            model=model.vector,
            statistics=statistics_down(self._experiment, model.beside),
            state=state,
            setting={**config, "round": server_round},
        )

    def read(self, message: Message, model: Model) -> Reply:
        """Screen a reply; see ``fedrobust.flower.screen``."""
        server = self._experiment.server
        return screen(
            message,
            d=model.vector.numel(),
            most_examples=self._most_examples,
            largest=server.largest,
            read=self._wire.read,
            variances=self._variances,
            times=server.times,
        )

    def heard(self, clients: Sequence[int], version: int) -> None:
        """Take these clients' replicas, and no others, to stand at a version."""
        self._downlink.confirm(clients, version)

    def as_sent(self, aggregate: Tensor, server_round: int) -> tuple[Tensor, Array | None]:
        """Quantise the aggregate where replicas will take the step themselves."""
        if not self._experiment.compression.replicas:
            return aggregate, None
        packet = self._wire.write(aggregate, server_round, SERVER)
        # What clients will read, not the exact aggregate: else server and replicas drift apart.
        return self._wire.read(packet), packet

    def stepped(self, version: int, packet: Array | None) -> None:
        """Keep the bytes of the step that led to a version."""
        if packet is not None:
            self._downlink.stepped(version, packet)

    def beside(self, model: Model, replies: Sequence[Reply]) -> Tensor | None:
        """Aggregate the running statistics by their rule."""
        if model.beside is None:
            return None
        return averaged(self._experiment, model.beside, replies)

    def packed(self, model: Model) -> ArrayRecord:
        """Write the global model."""
        if model.beside is None:
            return array_of(model=model.vector)
        return array_of(model=model.vector, statistics=model.beside)

    def metrics(self, replies: Sequence[Reply]) -> MetricRecord | None:
        """Return nothing: the row of the round says it."""
        return None

    def forget(self) -> None:
        """Send everybody the whole model."""
        self._downlink.forget()

    def snapshot(self) -> dict[str, Any]:
        """Return whose replica stands where."""
        return self._downlink.snapshot()

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._downlink.restore(tree)
