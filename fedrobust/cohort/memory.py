"""How many clients fit into one stack."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.evaluation import pixels
from fedrobust.vector import FlatModel

ON_CPU = 256 * 2**20
SHARE = 4  # of a GPU's memory: data, the matrix of updates and the rule's blocks have the rest
PER_PARAMETER = 6 * 4  # parameters, gradient, its copy, and up to three tensors of the optimizer


def chunk_of(model: FlatModel, image: Tensor, batch_size: int, budget: int | None) -> int:
    """Return how many clients train at once within ``budget`` bytes; at least one.

    Parameters
    ----------
    model
        Scratch model: what one image leaves behind for the backward pass is measured on it.
    image
        uint8 (1, C, H, W).
    batch_size
        Images of the largest mini-batch.
    budget
        Bytes; None: a quarter of the GPU's memory, 256 MiB on a CPU.
    """
    each = model.d * PER_PARAMETER + batch_size * activations(model, image)
    return max(1, (available(model.vector.device) if budget is None else budget) // each)


def available(device: torch.device) -> int:
    """Return the bytes that one stack may take on a device.

    Of all of a GPU's memory, not of what is free: what PyTorch keeps from earlier rounds is not,
    and other chunks are other sums.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // SHARE
    return ON_CPU


def activations(model: FlatModel, image: Tensor) -> int:
    """Return the bytes that one image's forward pass keeps for its backward pass, twice."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        own = tensor.untyped_storage().data_ptr() != model.vector.untyped_storage().data_ptr()
        kept += tensor.nbytes if own else 0
        return tensor

    model.module.eval()  # BatchNorm refuses a batch of one image in training
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.module(pixels(image)).sum()
    model.module.train()
    return 2 * kept
