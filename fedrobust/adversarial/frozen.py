"""Models held still while their inputs are perturbed, and left exactly as they were found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedrobust.spec import suggest

Model = nn.Module | Callable[[Tensor], Tensor]  # images (B, ...) in [0, 1] -> logits (B, classes)
MODES = ("eval", "train", "keep")
# Made anew at each use: the context object keeps what it restores, so it cannot be nested.
_NO_CPU = partial(torch.autocast, "cpu", enabled=False)
_NO_GPU = partial(torch.autocast, "cuda", enabled=False)


@contextmanager
def frozen(*models: Model, mode: str = "eval") -> Iterator[None]:
    """Freeze the parameters of models and set their mode; undo both at the end.

    Inside, float32 stays float32 (no autocast), gradients can be taken even under ``no_grad`` or
    ``inference_mode``, and no parameter collects one. Afterwards the training flag of every
    submodule and every ``requires_grad`` are as before, after an error too; ``grad`` is untouched.
    A plain function is called as it is.

    Parameters
    ----------
    *models
        Modules or functions.
    mode
        "eval": running statistics, no dropout. "train": statistics of the batch. "keep": as found.
        In the last two the buffers are put back afterwards, so that an attack changes no running
        statistics (an interpretation: DAT's code lets its FGSM pass update them).

    Raises
    ------
    ValueError
        If the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; {suggest(mode, list(MODES))}")
    networks = [model for model in models if isinstance(model, nn.Module)]
    flags = [(m, m.training) for network in networks for m in network.modules()]
    wanted = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    # In eval mode BatchNorm writes no statistics: a copy per batch would be for nothing.
    buffers = [b for network in networks for b in network.buffers()] if mode != "eval" else []
    kept = [buffer.clone() for buffer in buffers]
    try:
        for network in networks:
            if mode != "keep":
                network.train(mode == "train")
            network.requires_grad_(False)
        # bfloat16 gradients under autocast would change the signs that an attack steps by.
        with torch.inference_mode(False), torch.enable_grad(), _NO_CPU(), _NO_GPU():
            yield
    finally:
        # One by one: network.train(flag) would also switch the parts that the caller left in eval.
        for module, training in flags:
            module.training = training
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def input_gradient(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of the summed objective with respect to ``x``; NaN counts as 0.

    A sum, not a mean: the gradient of one image does not depend on the others in its batch.
    """
    point = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(point).sum(), point)
    # NaN would pass through sign and clamp and stay in the image; 0 leaves the pixel as it is.
    return gradient.nan_to_num(0.0)


def predict(model: Model, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the labels that a model in eval mode gives, (N,); float images in [0, 1]."""
    with frozen(model), torch.no_grad():
        parts = [model(chunk).argmax(1) for chunk in x.split(batch_size)]
    return torch.cat(parts) if len(x) else torch.empty(0, dtype=torch.long, device=x.device)
