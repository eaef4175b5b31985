"""What goes down in a round: the model, or the step that clients' replicas have not taken yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedrobust.flower import TensorArray
from fedrobust.flower.quantized_arrays import PACKET
from fedrobust.training import StepState


class Downlink:
    """Write each client's message, and remember whose replica stands where.

    Parameters
    ----------
    replicas
        Whether clients keep replicas. If not, everybody is sent the model.

    Notes
    -----
    The version of a model is the number of steps taken. A client whose last reply was accepted
    stands at the version that it was sent; it is sent the one step that it lacks, or nothing.
    Anybody else is sent the whole model with the optimizer's moments.
    """

    def __init__(self, *, replicas: bool) -> None:
        self._replicas = replicas
        self._held: dict[int, int] = {}
        self._step: tuple[int, Array] | None = None

    def contents(
        self,
        clients: Iterable[int],
        *,
        model: Tensor,
        statistics: Tensor | None,
        state: StepState,
        setting: Mapping[str, Any],
    ) -> dict[int, RecordDict]:
        """Return each client's content; clients that get the same share one."""
        if not self._replicas:
            content = _content(setting, statistics, model=TensorArray(model))
            # One object, not copies: grids that pack or salt messages go by identity, and send it
            # once.
            return dict.fromkeys(clients, content)
        setting = {**setting, "version": state.step}
        moments = {f"moment-{i}": TensorArray(m) for i, m in enumerate(state.moments)}
        kinds = {"whole": _content(setting, statistics, model=TensorArray(model), **moments)}
        kinds["same"] = _content(setting, statistics)
        if self._step is not None:
            kinds["step"] = _content(setting, statistics, step=self._step[1])
        return {client: kinds[self._kind(client, state.step)] for client in clients}

    def stepped(self, version: int, packet: Array) -> None:
        """Keep the bytes of the step that led to a version."""
        self._step = (version, packet)

    def confirm(self, clients: Iterable[int], version: int) -> None:
        """Take these clients, and nobody else, to stand at a version."""
        # The whole table anew: whether a client that was not heard took its last step, nobody
        # knows.
        self._held = dict.fromkeys(clients, version)

    def forget(self) -> None:
        """Send everybody the whole model: it changed by more than a step."""
        self._held = {}

    def snapshot(self) -> dict[str, Any]:
        """Return who stands where, and the bytes of the last step."""
        step = None if self._step is None else [self._step[0], self._step[1].data]
        return {"held": dict(self._held), "step": step}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._held = dict(tree["held"])
        if tree["step"] is not None:
            version, data = tree["step"]
            # The bytes themselves: the aggregate that they were made of is gone, and replicas need
            # equal bits.
            self._step = (version, Array("uint8", (len(data),), PACKET, data))

    def _kind(self, client: int, version: int) -> str:
        held = self._held.get(client)
        if held == version:
            return "same"
        known = self._step is not None and self._step[0] == version
        return "step" if known and held == version - 1 else "whole"


def _content(setting: Mapping[str, Any], statistics: Tensor | None, **arrays: Array) -> RecordDict:
    record = ArrayRecord()
    for key, array in arrays.items():
        record[key] = array
    if statistics is not None:
        record["statistics"] = TensorArray(statistics)
    return RecordDict({"arrays": record, "config": ConfigRecord(dict(setting))})
