"""Central evaluation of a model on a held-out set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Score:
    """Clean accuracy in [0, 1] and mean cross-entropy over one set."""

    accuracy: float
    loss: float


def pixels(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1]; inputs of other types are returned as they are."""
    # In place on the copy that float() has just made.
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode; each of its parts is in its own mode again afterwards."""
    # One by one: module.train(flag) would also switch the parts that the caller left in eval.
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


@torch.inference_mode()
def outputs_of(module: nn.Module, inputs: Tensor, *, batch_size: int = 500) -> Any:
    """Return a model's outputs of a whole set, on the CPU; the module's mode is left as found.

    A model with several outputs, as a tuple, a list or a table, returns them in the same form.
    """
    with evaluating(module):
        parts = [module(pixels(chunk)) for chunk in inputs.split(batch_size)]
    return _joined(parts)


def _joined(parts: list[Any]) -> Any:
    """Put the outputs of batches behind one another, in the type that they have.

    Raises
    ------
    TypeError
        For what is no tensor, such as a transformer's cache.
    """
    first = parts[0]
    if isinstance(first, Mapping):
        table = {key: _joined([part[key] for part in parts]) for key in first}
        return type(first)(**table)  # transformers' outputs are tables with attributes
    if isinstance(first, tuple | list):
        each = [_joined(list(found)) for found in zip(*parts, strict=True)]
        return type(first)(*each) if hasattr(first, "_fields") else type(first)(each)
    if not isinstance(first, Tensor):
        raise TypeError(f"outputs are tensors, or tables of them, got {type(first).__name__}")
    return torch.cat(parts).cpu()


@torch.inference_mode()
def evaluate(module: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> Score:
    """Measure clean accuracy and cross-entropy; the module's mode is left as found.

    Parameters
    ----------
    module
        Maps float images in [0, 1] of shape (B, C, H, W) to logits (B, classes).
    images, labels
        uint8 (N, C, H, W) and int64 (N,).
    """
    right, loss = 0, 0.0
    with evaluating(module):
        for chunk, target in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = module(pixels(chunk))
            right += int((logits.argmax(1) == target).sum())
            # A sum: a mean of the batches' means would weigh a short last batch too much.
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
    return Score(right / len(labels), loss / len(labels))
