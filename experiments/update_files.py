"""Updates in files, .npy or .safetensors, as a matrix that is read in blocks and never whole."""

from __future__ import annotations

import json
import math
import os
import struct
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fedrobust.spec import InputError

KINDS = (".npy", ".safetensors")
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
NUMPY = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}
LONGEST_HEADER = 100 << 20  # bytes, as safetensors itself allows


class FileError(InputError):
    """A file that holds no update, or not one like the others."""


@dataclass(frozen=True)
class Part:
    """One tensor of a file: its name, type and shape, and where its numbers begin."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of them."""
        return self.count * TYPES[self.type].itemsize


class UpdateFiles:
    """The updates of some files, one a row: a ``Matrix`` of ``fedrobust.aggregation.streamed``.

    The columns are all numbers of a file in the order in which the first file holds its tensors.

    Attributes
    ----------
    bytes_read
        Bytes of numbers that were read so far.

    Raises
    ------
    FileError
        If there is no file, or one is not like the others or not readable.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise FileError("there is no file of updates")
        self.paths = list(paths)
        self.kind = self.paths[0].suffix
        heads = [_head(path) for path in self.paths]
        self.parts = heads[0]
        self._starts = [
            _starts(self.parts, head, path) for head, path in zip(heads, paths, strict=True)
        ]
        self.bytes_read = 0

    @property
    def n(self) -> int:
        """Files."""
        return len(self.paths)

    @property
    def d(self) -> int:
        """Numbers in each."""
        return sum(part.count for part in self.parts)

    def blocks(self, width: int, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Read the columns first..last-1 in order, all of them where nothing else is said: (n, b).

        A block never reaches over the end of a tensor.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb", buffering=0)) for path in self.paths]
            for place, begin, end in self._within(first, self.d if last is None else last):
                part = self.parts[place]
                kept = torch.empty(self.n, min(width, end - begin), dtype=TYPES[part.type])
                for first in range(begin, end, width):
                    count = min(width, end - first)
                    block = kept if count == kept.shape[1] else kept.new_empty(self.n, count)
                    for row, (file, starts) in enumerate(zip(files, self._starts, strict=True)):
                        offset = starts[place] + first * kept.element_size()
                        self._fill(block[row], file, offset, self.paths[row])
                    yield block

    def _within(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Return what of each tensor is in some columns: its place, first number and end."""
        for place, (start, part) in enumerate(zip(self.columns, self.parts, strict=True)):
            begin, end = max(first - start, 0), min(last - start, part.count)
            if begin < end:
                yield place, begin, end

    @property
    def columns(self) -> list[int]:
        """The column in which each tensor begins."""
        return [0, *accumulate(part.count for part in self.parts)][:-1]

    def _fill(self, row: Tensor, file: BinaryIO, offset: int, path: Path) -> None:
        into = row.view(torch.uint8).numpy().data.cast("B")
        file.seek(offset)
        while len(into):
            read = file.readinto(into)  # type: ignore[attr-defined]
            if not read:
                raise FileError(f"{str(path)!r} ends before its last number")
            self.bytes_read += read
            into = into[read:]


def write_update(path: Path, like: UpdateFiles, parts: Iterable[Tensor | None]) -> None:
    """Write an aggregate, part by part, as a file of the kind, names, types and shapes of ``like``.

    The file appears whole or not at all. After a part that is None all parts come anew.

    Raises
    ------
    FileError
        If its name ends otherwise, or it is one of the files that are read.
    """
    check_output(path, like)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            head = _npy_head(like.parts[0]) if like.kind == ".npy" else _table(like.parts)
            file.write(head)
            for part in parts:
                if part is None:
                    file.seek(len(head))
                    continue
                file.write(part.contiguous().view(torch.uint8).numpy().data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_placed(path: Path, like: UpdateFiles, parts: Iterable[tuple[int, Tensor]]) -> None:
    """Write an aggregate as ``write_update`` does, from parts in any order.

    Parameters
    ----------
    parts
        The first column of each, and the part, which is inside one tensor. One that comes twice is
        written twice.
    """
    check_output(path, like)
    temporary = path.with_name(path.name + ".part")
    head = _npy_head(like.parts[0]) if like.kind == ".npy" else _table(like.parts)
    sizes = [0, *accumulate(part.size for part in like.parts)]
    try:
        with temporary.open("wb") as file:
            file.write(head)
            for column, part in parts:
                place = bisect(like.columns, column) - 1
                within = (column - like.columns[place]) * part.element_size()
                file.seek(len(head) + sizes[place] + within)
                file.write(part.contiguous().view(torch.uint8).numpy().data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path, like: UpdateFiles) -> None:
    """Refuse a file that would be another kind, or one that is read."""
    if path.suffix != like.kind:
        raise FileError(
            f"the output must end with {like.kind} as the updates do, got {str(path)!r}"
        )
    if path.resolve() in {one.resolve() for one in like.paths}:
        raise FileError(f"the output {str(path)!r} is one of the updates")


def _head(path: Path) -> list[Part]:
    """Read what a file holds, in the order of its bytes."""
    if path.suffix not in KINDS:
        raise FileError(f"updates are {' or '.join(KINDS)} files, got {str(path)!r}")
    try:
        with path.open("rb") as file:
            parts = _npy(file, path) if path.suffix == ".npy" else _safetensors(file, path)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise FileError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if not sum(part.count for part in parts):
        raise FileError(f"{str(path)!r} holds no numbers")
    if any(part.start + part.size > size for part in parts):
        raise FileError(f"{str(path)!r} ends before its last number")
    return parts


def _npy(file: BinaryIO, path: Path) -> list[Part]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0}[version]  # fmt: skip
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise FileError(f"{str(path)!r} is no npy file: {str(error)[:80]}") from error
    if dtype.str not in NUMPY or (fortran and len(shape) > 1):
        raise FileError(
            f"{str(path)!r} holds {dtype}{' in Fortran order' if fortran else ''}, expected"
            f" {', '.join(NUMPY)} in C order"
        )
    return [Part("", NUMPY[dtype.str], shape, file.tell())]


def _safetensors(file: BinaryIO, path: Path) -> list[Part]:
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        table = json.loads(file.read(length))
        found = [_entry(name, told, 8 + length) for name, told in table.items()
                 if name != "__metadata__"]  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise FileError(f"{str(path)!r} is no safetensors file: {str(error)[:80]}") from error
    if other := [part for part in found if part.type not in TYPES]:
        raise FileError(
            f"{str(path)!r}: tensor {other[0].name!r} is {other[0].type}, expected one of"
            f" {', '.join(TYPES)}"
        )
    return sorted(found, key=lambda part: part.start)


def _entry(name: str, told: Any, base: int) -> Part:
    shape = tuple(told["shape"])
    begin, end = told["data_offsets"]
    numbers = (*shape, begin, end)
    if not all(type(one) is int and one >= 0 for one in numbers):
        raise ValueError(f"tensor {name!r} of shape {shape} at {begin}..{end}")
    part = Part(name, str(told["dtype"]), shape, base + begin)
    if part.type in TYPES and part.size != end - begin:
        raise ValueError(f"tensor {name!r} of shape {shape} in {end - begin} bytes")
    return part


def _starts(first: list[Part], own: list[Part], path: Path) -> list[int]:
    """Return where a file's tensors begin, in the order of the first file's."""
    there = {part.name: part for part in own}
    for part in first:
        mine = there.get(part.name)
        if mine is None or (mine.type, mine.shape) != (part.type, part.shape):
            found = "nothing" if mine is None else f"{mine.type} {mine.shape}"
            raise FileError(
                f"{str(path)!r} is not like the first file: {part.name or 'the array'} is {found},"
                f" expected {part.type} {part.shape}"
            )
    if extra := sorted(set(there) - {part.name for part in first}):
        raise FileError(f"{str(path)!r} holds {extra[0]!r}, which the first file does not")
    return [there[part.name].start for part in first]


def _npy_head(part: Part) -> bytes:
    described = {value: key for key, value in NUMPY.items()}[part.type]
    head = {"descr": described, "fortran_order": False, "shape": part.shape}
    text = repr(head)
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _table(parts: Sequence[Part]) -> bytes:
    table, at = {}, 0
    for part in parts:
        offsets = [at, at + part.size]
        table[part.name] = {"dtype": part.type, "shape": list(part.shape), "data_offsets": offsets}
        at += part.size
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
