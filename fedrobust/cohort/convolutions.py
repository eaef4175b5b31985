"""Convolutions of many clients as batched matrix products.

Under ``vmap`` a convolution whose weights differ from client to client becomes one grouped
convolution; libraries are slow at those. As a product of unfolded images with the weights it is one
batched matrix product, for k^2 times the memory of the images (k: the side of the kernel).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = ("grouped", "products")
_kind: ContextVar[str] = ContextVar("how stacks convolve", default="grouped")


@contextmanager
def convolved(kind: str) -> Iterator[None]:
    """Let stacks inside the block convolve in one of the ways of ``CONVOLUTIONS``."""
    if kind not in CONVOLUTIONS:
        raise ValueError(f"convolutions are one of {', '.join(CONVOLUTIONS)}, got {kind!r}")
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def as_asked() -> AbstractContextManager[Any]:
    """Return the block in which a stack's forward pass convolves as asked."""
    return Products() if _kind.get() == "products" else nullcontext()


class Products(TorchFunctionMode):
    """Inside, plain two-dimensional convolutions are products; grouped ones stay."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace ``conv2d``."""
        if func in (torch.conv2d, F.conv2d):
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve images (B, C, H, W) with weights (O, C, k, k) by a product, where that is one."""
    if groups != 1 or isinstance(padding, str):
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
    size = tuple(weight.shape[2:])
    kernel, stride, padding, dilation = (_pair(x) for x in (size, stride, padding, dilation))
    columns = F.unfold(images, kernel, dilation, padding, stride)  # (B, C k k, places)
    found = weight.flatten(1) @ columns
    if bias is not None:
        found = found + bias[:, None]
    sides = zip(images.shape[2:], kernel, stride, padding, dilation, strict=True)
    return found.unflatten(2, [(x + 2 * p - d * (k - 1) - 1) // s + 1 for x, k, s, p, d in sides])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]
