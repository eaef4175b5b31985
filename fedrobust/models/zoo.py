"""Networks for images and for rows of a table; inputs are normalised inside.

Images arrive in [0, 1]. A model of a user's own stands in the same table as a ``GivenModel`` and
gets inputs as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust.data import Dataset
from fedrobust.models.cifar import CIFAR_ZOO
from fedrobust.models.small import SMALL
from fedrobust.models.text import TEXT
from fedrobust.seeds import derive, global_generators
from fedrobust.spec import InputError, suggest

Shape = tuple[int, ...]


class ModelError(InputError):
    """A network that is unknown, or does not fit the images."""


class Normalise(nn.Module):
    """(x - mean) / std per channel, or per column; constants, not parameters."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], dimensions: int = 4
    ) -> None:
        super().__init__()
        shape = (1, -1, *(1,) * (dimensions - 2))
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images of shape (B, C, H, W), or rows of shape (B, k)."""
        return (images - self.mean) / self.std


@dataclass(frozen=True)
class GivenModel:
    """A model of a user's own in the table: a function that returns a module, or the module.

    A function may take ``shape``, that of one input, and ``classes``, how many outputs are needed;
    the initial weights that it draws follow from the experiment's seed. A module's own weights are
    the initial ones, whatever the seed.
    """

    name: str
    made: Callable[..., nn.Module] | nn.Module

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        """Return a fresh module.

        Raises
        ------
        ModelError
            If the function needs anything else, or returns no module.
        """
        if isinstance(self.made, nn.Module):
            return copy.deepcopy(self.made)  # training would write into the user's own
        known: dict[str, Any] = {"shape": shape, "classes": classes}
        asked = inspect.signature(self.made).parameters
        needed = [k for k, p in asked.items() if p.default is p.empty and _named(p)]
        if missing := [key for key in needed if key not in known]:
            raise ModelError(
                f"model {self.name!r} needs {missing[0]!r}, a run hands in shape and classes only:"
                " give it a default, or fix it by functools.partial"
            )
        return _checked(self.made(**{k: v for k, v in known.items() if k in asked}))


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def linear(shape: Shape, classes: int) -> nn.Module:
    """Softmax regression on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))


def mlp(shape: Shape, classes: int) -> nn.Module:
    """One hidden layer of 100: the MNIST network of ALIE's code (79,510 parameters on 1x28x28).

    References
    ----------
    Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019, section 5, released code; the
    output is logits here, the log-softmax is in the loss.
    """
    hidden = nn.Linear(prod(shape), 100)
    nn.init.xavier_uniform_(hidden.weight)  # of the first layer alone, as in that code
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(100, classes))


def pooled_mlp(shape: Shape, classes: int) -> nn.Module:
    """One hidden layer of 32 on 2x2 averages (6,634 parameters on 1x28x28): for many runs."""
    channels, height, width = shape
    hidden = nn.Linear(channels * (height // 2) * (width // 2), 32)
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(32, classes))


def wide_mlp(shape: Shape, classes: int) -> nn.Module:
    """One hidden layer of 1,258 (1,000,120 parameters on 1x28x28).

    Many parameters for little arithmetic: for measuring what carrying a model costs.
    """
    hidden = 1258
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def alie_cnn(shape: Shape, classes: int) -> nn.Module:
    """The CIFAR-10 network of ALIE's code (117,706 parameters on 3x32x32).

    References
    ----------
    Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019, section 5, released code.
    """
    if shape != (3, 32, 32):
        raise ModelError(f"alie_cnn needs images of shape (3, 32, 32), got {shape}")
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(16, 64, 4),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, classes),
    )


def cnn(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions with GroupNorm and one hidden layer, for any image of 8x8 or more."""
    channels, height, width = shape
    if height < 8 or width < 8:
        raise ModelError(f"cnn needs images of at least 8x8, got {height}x{width}")
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def tiny_cnn(shape: Shape, classes: int) -> nn.Module:
    """Two strided convolutions and one linear layer (10,986 parameters on 3x32x32).

    A tenth of a millisecond an image on one core, forward and back: for studies of many gradients.
    """
    channels, height, width = shape
    if height < 16 or width < 16:
        raise ModelError(f"tiny_cnn needs images of at least 16x16, got {height}x{width}")
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (-(-height // 4) // 2) * (-(-width // 4) // 2), classes),
    )


def bn_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two convolutions with BatchNorm and one hidden layer, for any image of 2x2 or more.

    The one small network with running statistics: for toys and tests of their policies.
    """
    side = min(7, shape[1] // 2, shape[2] // 2)
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(side),
        nn.Flatten(),
        nn.Linear(32 * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


MODELS: dict[str, Callable[[Any, int], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "pooled_mlp": pooled_mlp,
    "wide_mlp": wide_mlp,
    "alie_cnn": alie_cnn,
    "cnn": cnn,
    "tiny_cnn": tiny_cnn,
    "bn_cnn": bn_cnn,
    **SMALL,
    **TEXT,
    **CIFAR_ZOO,
}


# What takes inputs of any shape, and what takes sequences of tokens; all others take images.
ANY_SHAPE = ("linear", "mlp", "wide_mlp")
OF_TOKENS = tuple(TEXT)


def build(
    name: str,
    *,
    shape: Shape,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> nn.Module:
    """Build a network with its initial weights drawn from ``seed`` alone.

    Raises
    ------
    ModelError
        If the name is unknown or the images do not fit the network.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}; {suggest(name, list(MODELS))}")
    if name in OF_TOKENS and len(shape) != 1:
        raise ModelError(f"model {name!r} takes sequences of tokens, these inputs are {shape}")
    if isinstance(MODELS[name], GivenModel) or name in OF_TOKENS:
        with seeded(seed):
            return MODELS[name](shape, classes)
    if len(shape) != 3 and name not in ANY_SHAPE:
        raise ModelError(
            f"model {name!r} takes images, these inputs have the shape {shape}: choose from"
            f" {', '.join(ANY_SHAPE)}, or bring a model of your own"
        )
    with seeded(seed):
        network = MODELS[name](shape, classes)
        return nn.Sequential(Normalise(mean, std, 1 + len(shape)), network) if mean else network


def build_for(model: str | Callable[[], nn.Module], dataset: Dataset, *, seed: int) -> nn.Module:
    """Build a network for a data set's images and classes; see ``build``.

    Parameters
    ----------
    model
        A name of ``MODELS``, or a function of one's own that returns a fresh module for the data
        set's inputs: images in [0, 1], or tensors of any other type as they are.
    seed
        Draws the initial weights, of one's own modules too.
    """
    if not isinstance(model, str):
        with seeded(seed):
            return _checked(model())
    return build(
        model,
        shape=dataset.shape,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        seed=seed,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from a seed: torch.nn.init draws from the global generator only."""
    with global_generators(derive(seed, "model")):
        yield


def _checked(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ModelError(f"a model is a function that returns an nn.Module, it returned {kind}")
    return module
