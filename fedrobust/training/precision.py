"""The arithmetic of training: float32 unless faster and coarser is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

PRECISIONS = ("float32", "tf32", "bf16")


def precision(
    name: str, device: torch.device, *, backward: bool = False
) -> AbstractContextManager[None]:
    """Compute a forward pass inside the block in this precision, or the backward pass after it.

    Parameters
    ----------
    name
        "float32"; "tf32": products of float32 with 10 bits of mantissa, on GPUs that have it;
        "bf16": autocast to bfloat16. Parameters and updates stay float32.
    device
        Where the training happens.
    backward
        Whether the block holds a backward pass. Autocast wants none inside: the operations go back
        in the types that they came in. TF32 is a switch of the products, the same for both passes.
    """
    halves = name == "bf16" and not backward
    # A CPU has no TF32: there it stays float32, and a small network's step has nothing to wait for.
    return _switched(name, device, halves) if halves or device.type == "cuda" else nullcontext()


@contextmanager
def _switched(name: str, device: torch.device, halves: bool) -> Iterator[None]:
    with (
        tf32(on=name == "tf32", device=device),
        torch.autocast(device.type, torch.bfloat16) if halves else nullcontext(),
    ):
        yield


@contextmanager
def tf32(*, on: bool, device: torch.device) -> Iterator[None]:
    """Switch TF32 on or off inside the block, for matrix products and convolutions alike.

    PyTorch itself has it on for convolutions and off for products. Nothing is done for a CPU.
    """
    if device.type != "cuda":
        yield
        return
    before = switched(on, on)
    try:
        yield
    finally:
        switched(*before)


def switched(products: bool, convolutions: bool) -> tuple[bool, bool]:
    """Set TF32 for both kinds of operations, for the whole process; return what it was."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions
    return before
