"""A device that is not there: tensors that say they are elsewhere and do not mix with the CPU's.

What runs on it keeps the rules of a GPU: operands on one device, no ``numpy()``, explicit copies.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy")  # a type that PyTorch knows and does not try to start
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
MIXED = {  # indices and scalars may be the CPU's
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default, aten._index_put_impl_.default,
}  # fmt: skip


PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


class Elsewhere(Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        """Wrap a CPU tensor."""
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.held = inner
        return made

    def __repr__(self) -> str:
        """Show what is inside."""
        return f"Elsewhere({self.held!r})"

    def numpy(self, *, force: bool = False):
        """Refuse, as a GPU's tensor does."""
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu()")

    def data_ptr(self) -> int:
        """Return where it lies."""
        return self.held.data_ptr()

    def untyped_storage(self):
        """Return the memory that it and its views share."""
        return self.held.untyped_storage()

    def tolist(self):
        """Copy the values."""
        return self.held.tolist()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Let ``parameter.data = tensor`` change what is inside, too."""
        if func == Tensor.data.__set__:
            args[0].held = args[1].held
        if func in PRODUCTS and args[0].dim() == 1 and args[1].dim() == 2:
            args = (args[0][None], args[1])  # matmul would squeeze in place, which no wrapper sees
            return (args[0] @ args[1])[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Run on the tensors inside, if all of them are elsewhere."""
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """While it is on, ``DEVICE`` can be copied to and created on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Look at every operation."""
        return run(func, args, kwargs or {})


@contextmanager
def outside_inference():
    """Leave the inference mode, whose tensors cannot be wrapped; autograd stays out of it."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch._C._AutoDispatchBelowADInplaceOrView():
        yield


def run(func, args, kwargs):
    """Run one operation, here or elsewhere."""
    flat = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in flat if isinstance(x, Elsewhere)]
    wanted = kwargs.get("device")
    if there and func not in COPIES and len(there) < len(flat):
        here = [x for x in flat if not isinstance(x, Elsewhere) and x.dim()]
        if here and func not in MIXED:
            raise RuntimeError(f"{func}: operands on {DEVICE} and on the CPU")
    inside = pytree.tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    if wanted is not None and torch.device(wanted).type == DEVICE.type:
        inside[1]["device"] = torch.device("cpu")
        elsewhere = True
    else:
        elsewhere = bool(there) and wanted is None
    if func is aten.copy_.default:
        inside[0][0].copy_(inside[0][1])
        return args[0]
    with outside_inference():
        result = func(*inside[0], **inside[1])
        if not elsewhere:
            return result
        known = {id(x.held): x for x in there}  # an operation in place returns its operand
        return pytree.tree_map(
            lambda x: known.get(id(x), Elsewhere(x)) if isinstance(x, Tensor) else x, result
        )
