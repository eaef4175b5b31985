"""The gradient of one file, from somebody's own model, loss and data."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from fedrobust.models.batchnorm import load_statistics, read_statistics
from fedrobust.seeds import global_generators
from fedrobust.training import one_thread
from fedrobust.vector import FlatModel

Model = nn.Module | Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]


class FileGradient:
    """Compute the mean gradient of a file's samples.

    Parameters
    ----------
    model
        A module, or a function that returns one.
    loss
        (outputs, targets) -> scalar, the mean over the samples.
    data
        A map-style dataset: ``len(data)``, and ``data[i]`` is a pair (input, target).
    device
        Where the gradient is computed.

    Notes
    -----
    BatchNorm's running statistics are part of a file's value: the vector that a worker commits to
    is the gradient (d,) followed by the statistics (b,) after one pass over the file. They are
    compared, voted on and averaged like the gradient.
    """

    def __init__(self, model: Model, loss: Loss, data: Any, *, device: str = "cpu") -> None:
        module = model if isinstance(model, nn.Module) else model()
        self._device = torch.device(device)
        self.model = FlatModel(module.to(self._device))
        self.statistics = read_statistics(module)
        self._loss, self._data = loss, data

    def __call__(self, vector: Tensor, statistics: Tensor, indices: Tensor, *, seed: int) -> Tensor:
        """Return a file's value, (d + b,) float32 on the CPU.

        Parameters
        ----------
        vector, statistics
            The parameters (d,) and running statistics (b,) where the gradient is taken.
        indices
            The file's samples.
        seed
            Of dropout and of augmentation inside the dataset: the same for every holder.

        Raises
        ------
        ValueError
            If the loss is no finite scalar.
        """
        module = self.model.module.train()
        # One thread: sums split among threads round otherwise, and copies are compared bit by bit.
        with one_thread(), reproducible(seed, self._device):
            # Inside the block: a dataset that augments draws from torch's generator too.
            samples = [self._data[i] for i in indices.tolist()]
            inputs, targets = (part.to(self._device) for part in default_collate(samples))
            self.model.load(vector)
            # Each file starts from the round's statistics: train mode has written over them.
            load_statistics(module, statistics)
            self.model.gradient.zero_()
            value = self._loss(module(inputs), targets)
            if value.ndim or not bool(torch.isfinite(value)):
                raise ValueError(
                    f"loss must be a finite scalar, got shape {tuple(value.shape)}: {value}"
                )
            value.backward()
        return with_statistics(self.model.gradient.cpu(), module)


def with_statistics(gradient: Tensor, module: nn.Module) -> Tensor:
    """Return a gradient (d,) followed by a module's running statistics (b,), in fresh memory."""
    return torch.cat([gradient, read_statistics(module)])


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block, and take deterministic kernels on a GPU; restore both after it.

    A user's dropout and augmentation draw from torch's own generators, which nobody else here does:
    all holders of a file must draw the same.
    """
    devices = [device] if device.type == "cuda" else []
    before = torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with global_generators(seed, devices):
        if devices:
            # warn_only: an operation without such a kernel runs all the same.
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Not all cards have TF32: holders on different ones would differ.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            if devices:
                torch.use_deterministic_algorithms(before)
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def profile(device: str = "cpu") -> str:
    """Describe what the bits of a gradient depend on: torch, device, instruction set, threads."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine()
    sets = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {where.type} {name} {sets}, 1 thread"
