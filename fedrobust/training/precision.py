"""The arithmetic of training: float32 unless faster and coarser is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("float32", "tf32", "bf16")


@contextmanager
def precision(name: str, device: torch.device, *, backward: bool = False) -> Iterator[None]:
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
        in the types that they came in. TF32 is a switch of the products, on for both passes.
    """
    if name == "bf16" and not backward:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    # A CPU has none: there it stays float32.
    elif name == "tf32" and device.type == "cuda":
        with _tf32():
            yield
    else:
        yield


@contextmanager
def _tf32() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
