"""Running statistics of BatchNorm <-> one vector, kept apart from the parameters.

They are no gradients and no rows of the (n, d) matrix: a rule that picks one client's update must
not pick its statistics with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tracked(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating buffers that a model saves, by name; counters are left out."""
    # What is not saved (constants, such as a normalisation's mean) is no statistic.
    saved = module.state_dict(keep_vars=True)
    named = dict(module.named_buffers())
    # Whole numbers count batches: a mean of them over clients says nothing.
    return {name: b for name, b in named.items() if name in saved and b.is_floating_point()}


def read_statistics(module: nn.Module) -> Tensor:
    """Copy a model's running statistics into one vector (b,); b is 0 without BatchNorm."""
    parts = [buffer.detach().reshape(-1) for buffer in tracked(module).values()]
    return torch.cat(parts).float().cpu() if parts else torch.empty(0)


def load_statistics(module: nn.Module, vector: Tensor) -> None:
    """Write a vector (b,) back into the running statistics; the counts of batches start anew.

    Raises
    ------
    ValueError
        If the vector has another length.
    """
    buffers = list(tracked(module).values())
    needed = sum(buffer.numel() for buffer in buffers)
    if vector.numel() != needed:
        raise ValueError(f"the running statistics need {needed} values, got {vector.numel()}")
    with torch.no_grad():
        for buffer, part in zip(buffers, vector.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
        # With momentum=None a layer averages over the batches that it has counted: what a module
        # saw before, for whomever, must not weigh in what comes next.
        for name, count in module.named_buffers():
            if name.endswith("num_batches_tracked"):
                count.zero_()


def variances(module: nn.Module) -> Tensor:
    """Tell which values of the vector are variances, (b,) bool: they may not be negative."""
    parts = [
        torch.full((buffer.numel(),), name.endswith("running_var"))
        for name, buffer in tracked(module).items()
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)
