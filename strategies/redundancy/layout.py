"""The model as the strategy is handed it: one flat vector, or the layers of a state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedrobust.flower import array_of, tensor_of
from fedrobust.model_layers import Layers
from fedrobust.models.batchnorm import load_statistics, read_statistics, variances
from fedrobust.vector import FlatModel

FLAT = {"model", "statistics"}


class ModelLayout:
    """Read and write models in either form, and know their sizes.

    Parameters
    ----------
    model
        A module, or a function that returns one; a module is copied, not changed.
    """

    def __init__(self, model: nn.Module | Callable[[], nn.Module]) -> None:
        module = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
        self.flat = FlatModel(module.cpu())
        self.shapes = self.flat.shapes
        self.d = self.flat.d
        self.b = read_statistics(module).numel()
        self._variances = variances(module)

    @property
    def layers(self) -> Layers:
        """Name and shape of each tensor of a file's value; running statistics are the last."""
        return self.flat.layers + ((("statistics", (self.b,)),) if self.b else ())

    @property
    def length(self) -> int:
        """Length of a file's value: gradient and running statistics, d + b."""
        return self.d + self.b

    def read(self, arrays: ArrayRecord) -> tuple[Tensor, Tensor]:
        """Return parameters (d,) and running statistics (b,) of a model that this side trusts.

        Raises
        ------
        ValueError
            If it is not this model's.
        """
        if "model" in arrays and set(arrays.keys()) <= FLAT:
            vector = tensor_of(arrays["model"])
            own = tensor_of(arrays["statistics"]) if "statistics" in arrays else torch.empty(0)
            if (vector.numel(), own.numel()) != (self.d, self.b):
                raise ValueError(
                    f"the model needs {self.d} parameters and {self.b} running statistics, got"
                    f" {vector.numel()} and {own.numel()}"
                )
            return vector, own
        try:
            self.flat.module.load_state_dict(arrays.to_torch_state_dict())
        except RuntimeError as error:
            raise ValueError(f"the arrays are not this model's: {str(error)[:300]}") from error
        return self.flat.vector.clone(), read_statistics(self.flat.module)

    def write(self, like: ArrayRecord, vector: Tensor, statistics: Tensor) -> ArrayRecord:
        """Return a model in the form of ``like``, which ``read`` has just read."""
        kept = statistics.clone()
        if self.b:
            # The screen of a file's value asks for finite numbers alone; the root of a negative one
            # is NaN.
            kept[self._variances] = kept[self._variances].clamp(min=0)
        if "model" in like and set(like.keys()) <= FLAT:
            return array_of(model=vector, **({"statistics": kept} if self.b else {}))
        self.flat.load(vector)
        load_statistics(self.flat.module, kept)
        return ArrayRecord(self.flat.module.state_dict())
