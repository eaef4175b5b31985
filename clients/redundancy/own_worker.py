"""A file worker for somebody's own ClientApp: own model, own loss, own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import Context, Message
from torch import Tensor

from clients.redundancy.gradients import FileGradients, Place
from clients.redundancy.stages import answer, honest, read_task
from fedrobust.redundancy.file_gradient import FileGradient, Loss, Model


class FileWorker:
    """Answer the training messages of `strategies.RedundantStrategy`.

    Parameters
    ----------
    model, loss, data, device
        The same model, loss and data as the server's; see `FileGradient`. Every worker needs all of
        the data: the server says which samples are whose.

    Examples
    --------
    ::

        app = ClientApp()
        worker = FileWorker(model=Net, loss=nn.functional.cross_entropy, data=train_set)

        @app.train()
        def train(message, context):
            return worker(message, context)
    """

    def __init__(self, *, model: Model, loss: Loss, data: Any, device: str = "cpu") -> None:
        self._gradient = FileGradient(model, loss, data, device=device)
        self._values = FileGradients(self._compute)
        self._examples = len(data)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one stage of a round.

        Raises
        ------
        ValueError
            If the data are not as many as the server's.
        """
        task = read_task(message, context)
        if task.plan.examples != self._examples:
            raise ValueError(
                f"the server has {task.plan.examples} samples, this worker {self._examples}: all"
                " must have the same data"
            )
        values = self._values.turn_to(task.vector, task.statistics, task.plan)
        return answer(message, values, honest(values, task.worker))

    def _compute(self, place: Place, indices: Tensor, files: Sequence[int]) -> list[Tensor]:
        return [
            self._gradient(
                place.vector,
                place.statistics,
                indices[file],
                seed=place.plan.file_seed("file", file),
            )
            for file in files
        ]
