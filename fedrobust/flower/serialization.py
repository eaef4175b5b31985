"""Tensors on the wire: by reference inside one process, as npy bytes everywhere else."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

PROTOCOL = 1
NPY = "numpy.ndarray"
LONGEST_HEADER = 4096
HEADERS = {  # version -> its reader
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
FLOATS = ("float16", "float32", "float64")
ALIGNED = 16  # bytes: what vector instructions may rely on

with warnings.catch_warnings():  # torch says once a process that such memory is not to be written
    warnings.simplefilter("ignore")
    torch.frombuffer(bytes(4), dtype=torch.float32)
    torch.from_numpy(np.frombuffer(bytes(4), np.float32))


class TensorArray(Array):
    """A Flower array that keeps its tensor and makes bytes only when somebody asks.

    Assign it with ``record[key] = ...``: the constructor of a record copies.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        # Past ``Array.__setattr__``, which forgets at each what it has made of the bytes so far.
        dtype = str(tensor.dtype).removeprefix("torch.")
        vars(self).update(dtype=dtype, shape=tuple(tensor.shape), stype=NPY)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The npy bytes, made anew at each call."""
        array = np.asarray(self.numpy(), order="C")
        head = io.BytesIO()
        described = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(head, described)
        return b"".join((head.getvalue(), array.reshape(-1).view(np.uint8).data))  # copied once

    def numpy(self) -> np.ndarray:
        """Return the tensor as an array, without a copy on the CPU."""
        return self.tensor.cpu().numpy()

    def deflate(self) -> bytes:
        """Describe the array for the wire under the name that Flower knows: a plain array's."""
        plain = Array(self.dtype, self.shape, self.stype, b"")
        plain.slice_array = self.slice_array  # type: ignore[method-assign]  # bytes are made once
        return plain.deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes of one simulation as numpy's own buffer.

        Carriers that take buffers apart from the rest, as Ray does, then copy it once into shared
        memory, where the receiver reads it in place.
        """
        return _received, (np.ascontiguousarray(self.numpy()),)


def _received(values: np.ndarray) -> TensorArray:
    """Take an array that came from another process; it is not to be written."""
    return TensorArray(torch.from_numpy(values))


def array_of(**tensors: Tensor) -> ArrayRecord:
    """Put named tensors into one record, by reference."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = TensorArray(tensor)
    return record


def tensor_of(array: Array) -> Tensor:
    """Read a float32 array as a tensor, trusting none of its claims.

    The tensor is a view of the array's own bytes: it is not to be written. No memory is taken
    before the declared size has been compared with the bytes at hand; nothing is unpickled.

    Raises
    ------
    ValueError
        If the array is not float32 npy, or its header, declared shape and length disagree.
    """
    if isinstance(array, TensorArray):
        if array.tensor.dtype != torch.float32:
            raise ValueError(f"dtype {array.dtype}, expected float32")
        return array.tensor
    if array.stype != NPY:
        raise ValueError(f"serialization type {array.stype!r}, expected {NPY!r}")
    if array.dtype != "float32":
        raise ValueError(f"dtype {array.dtype}, expected float32")
    offset, shape, fortran, dtype = _header(array.data)
    if (fortran and len(shape) > 1) or dtype != np.dtype("<f4"):
        raise ValueError(f"the bytes hold {dtype}, expected float32 in C order")
    if shape != tuple(array.shape):
        raise ValueError(f"declared shape {tuple(array.shape)} but the bytes hold {shape}")
    if offset == len(array.data):
        return torch.empty(shape)  # ``frombuffer`` takes no empty buffer
    flat = torch.frombuffer(array.data, dtype=torch.float32, offset=offset)
    return (flat.clone() if flat.data_ptr() % ALIGNED else flat).view(shape)


def npy_values(array: Array) -> np.ndarray:
    """Return an array's numbers, read from its bytes alone; read only.

    The claims beside the bytes are not looked at: Flower's older API leaves them empty. No memory
    is taken before the header's size has been compared with the bytes at hand.

    Raises
    ------
    ValueError
        If the bytes are no npy array of real numbers, or fewer or more than its header declares.
    """
    if isinstance(array, TensorArray):
        return array.numpy()
    if array.stype != NPY:
        raise ValueError(f"serialised as {str(array.stype)[:40]!r}, expected {NPY!r}")
    offset, shape, fortran, dtype = _header(array.data)
    if dtype.name not in FLOATS and dtype.kind not in "iub":
        raise ValueError(f"holds {dtype}, expected real numbers")
    values = np.frombuffer(array.data, dtype, offset=offset)
    return values.reshape(shape, order="F" if fortran else "C")


def read_tensor(content: RecordDict, record: str, key: str) -> Tensor:
    """Read one tensor of a message that this side trusts.

    Raises
    ------
    ValueError
        If it is not there, or is no float32 array.
    """
    found = content.get(record)
    if not isinstance(found, ArrayRecord) or key not in found:
        raise ValueError(f"the message holds no array {record}/{key}")
    return tensor_of(found[key])


def read_setting(content: RecordDict, record: str, key: str) -> Any:
    """Read one setting of a message; None where it is not there."""
    found = content.get(record)
    return found.get(key) if isinstance(found, ConfigRecord) else None


def _header(data: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Return where the numbers start, their shape, whether in Fortran's order, and their type."""
    # No more than a header can have is given to numpy's parser.
    stream = io.BytesIO(data[:LONGEST_HEADER])
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # numpy's reader fails in many ways on bytes that are no header
        raise ValueError(f"the bytes are no npy array: {str(error)[:80]}") from error
    size = dtype.itemsize
    for extent in shape:  # Python's integers do not overflow
        size *= extent
    if size != len(data) - stream.tell():
        raise ValueError(f"{len(data) - stream.tell()} bytes of numbers, the header needs {size}")
    return stream.tell(), shape, fortran, dtype
