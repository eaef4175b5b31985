"""Loops of the quantiser: numba on the CPU, torch elsewhere, the same random draws in both."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Array = NDArray[Any]

_BLOCK = 2048  # coordinates per block of the random stream
_HALF = _BLOCK // 2  # a Threefry call gives two words: one for each half of the block
_WORD = 2.0**32
_TINY = 1e-300  # keeps 1 / unit finite
_PARITY = 0x1BD11BDA  # Threefry's key-schedule constant
_U = np.uint32


def encode(x: Array, norms: Array, width: int, levels: int, key: list[int], codes: Array) -> None:
    """Write the code of every coordinate of ``x``, float32 or float64, (d,)."""
    real = x.dtype.type
    words = _U(key[0]), _U(key[1]), _U(key[0] ^ key[1] ^ _PARITY)
    _encode(x, norms, width, real(levels), real(_WORD), words, codes)


def decode(codes: Array, norms: Array, width: int, levels: int, out: Array) -> None:
    """Write the value of every code in the type of the norms."""
    _decode(codes, norms, width, norms.dtype.type(levels), out)


def decode_torch(codes: Tensor, norms: Tensor, width: int, levels: int, out: Tensor) -> None:
    """Do on any device what ``decode`` does on the CPU."""
    wide = codes.to(torch.int32)
    # A code is 2 * level + sign bit.
    signed = (wide >> 1) * (2 * (wide & 1) - 1)
    torch.mul(signed.to(norms.dtype) / levels, spread(norms, width, len(codes)), out=out)


def peaks_and_sums(x: Tensor, width: int, *, squares: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return per bucket the largest magnitude, a float64 unit near it, and sum (x / unit)^2."""
    values = x.numpy()
    peaks = largest(values, width)
    units = np.maximum(peaks.astype(np.float64), _TINY)
    sums = torch.from_numpy(square_sums(values, width, 1 / units)) if squares else None
    return torch.from_numpy(peaks), torch.from_numpy(units), sums


def peaks_and_sums_torch(
    x: Tensor, width: int, *, squares: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do on any device what ``peaks_and_sums`` does on the CPU."""
    rows = F.pad(x, (0, -x.numel() % width)).reshape(-1, width)
    peaks = rows.abs().amax(1)
    units = peaks.double().clamp_min(_TINY)
    # Scaled by the peak before squaring: squares of large float32 values overflow.
    return peaks, units, (rows / units[:, None]).square().sum(1) if squares else None


def largest(x: Array, width: int) -> Array:
    """Return the largest magnitude per bucket, NaN or Inf where there is one.

    Compared as integers: the bits of positive floats order like the floats, with NaN on top.
    """
    bits = x.view(f"i{x.itemsize}")
    out = np.empty(-(-x.size // width), bits.dtype)
    _largest(bits, bits.dtype.type(np.iinfo(bits.dtype).max), width, out)
    return out.view(x.dtype)


def spread(norms: Tensor, width: int, count: int) -> Tensor:
    """Return the norm of every coordinate; a view where there is only one."""
    return norms.repeat_interleave(width)[:count] if norms.numel() > 1 else norms


def encode_torch(flat: Tensor, norms: Tensor, width: int, levels: int, key: list[int]) -> Tensor:
    """Do on any device what ``encode`` does on the CPU, draw for draw."""
    norm = spread(norms, width, flat.numel())
    # Cut to the levels: a float64 norm may come out a rounding below its largest value.
    ratio = torch.where(norm > 0, (flat.abs() / norm * levels).clamp_max(levels), 0)
    whole = ratio.floor()
    words = random_words(key, flat.numel(), device=flat.device)
    # Times 2^32, a power of two: exact in each type, so that CPU and GPU draw alike.
    up = words < ((ratio - whole).double() * _WORD).long()
    return torch.where(norm > 0, 2 * (whole.int() + up) + (flat > 0), 0)


def random_words(key: list[int], count: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return ``count`` words of 32 bits in int64: Threefry-2x32-20 in the layout of the encoder."""
    half = _BLOCK // 2
    pairs = torch.arange(-(-count // _BLOCK) * half, device=device)
    # int64 with masks, since torch has no arithmetic of uint32.
    first, second = pairs & 0xFFFFFFFF, pairs >> 32
    keys = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    first, second = (first + keys[0]) & 0xFFFFFFFF, (second + keys[1]) & 0xFFFFFFFF
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            first = (first + second) & 0xFFFFFFFF
            second = ((second << turn | second >> (32 - turn)) & 0xFFFFFFFF) ^ first
        first = (first + keys[(group + 1) % 3]) & 0xFFFFFFFF
        second = (second + keys[(group + 2) % 3] + group + 1) & 0xFFFFFFFF
    return torch.stack([first.reshape(-1, half), second.reshape(-1, half)], 1).reshape(-1)[:count]


def pack(codes: Array, bits: int) -> Array:
    """Return the codes in ``bits`` bits each, lowest bits first, as bytes."""
    if bits in (8, 16):
        return codes.astype(codes.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    out = np.zeros(-(-codes.size * bits // 8), np.uint8)
    _pack(codes, bits, out)
    return out


def unpack(data: Array, count: int, bits: int) -> Array:
    """Return ``count`` codes from what ``pack`` wrote: uint8 up to 8 bits, uint16 above."""
    if bits in (8, 16):
        kind = np.dtype("u1" if bits == 8 else "<u2")
        # A copy: the bytes of a message are read-only, and codes may start at an odd address.
        return data.copy().view(kind).astype(kind.newbyteorder("="), copy=False)
    out = np.empty(count, np.uint8 if bits < 8 else np.uint16)
    _unpack(data, bits, out)
    return out


@numba.njit(inline="always")
def _turn(x, k):
    return _U((x << _U(k)) | (x >> _U(32 - k)))


@numba.njit(inline="always")
def _four(a, b, k, first, second, third, fourth):
    """Mix four rounds, then add the two key words ``k`` (the round number is in the second)."""
    a = _U(a + b)
    b = _U(_turn(b, first) ^ a)
    a = _U(a + b)
    b = _U(_turn(b, second) ^ a)
    a = _U(a + b)
    b = _U(_turn(b, third) ^ a)
    a = _U(a + b)
    b = _U(_turn(b, fourth) ^ a)
    return _U(a + k[0]), _U(b + k[1])


@numba.njit(nogil=True, cache=True)
def _words(key, start, out):
    """Fill one block with Threefry-2x32-20 of the counters from ``start``."""
    k0, k1, k2 = key
    for j in range(_HALF):
        a, b = _U(_U(start + j) + k0), _U(_U((start + j) >> 32) + k1)
        a, b = _four(a, b, (k1, _U(k2 + _U(1))), 13, 15, 26, 6)
        a, b = _four(a, b, (k2, _U(k0 + _U(2))), 17, 29, 16, 24)
        a, b = _four(a, b, (k0, _U(k1 + _U(3))), 13, 15, 26, 6)
        a, b = _four(a, b, (k1, _U(k2 + _U(4))), 17, 29, 16, 24)
        a, b = _four(a, b, (k2, _U(k0 + _U(5))), 13, 15, 26, 6)
        out[j] = a
        out[j + _HALF] = b


@numba.njit(nogil=True, cache=True)
def _encode_run(x, norm, levels, word, draws, codes):
    """Encode coordinates that share a norm above 0: no branch, so that it vectorises."""
    for i in range(x.size):
        ratio = min(abs(x[i]) / norm * levels, levels)
        whole = np.floor(ratio)
        up = draws[i] < _U((ratio - whole) * word)
        codes[i] = 2 * (np.int32(whole) + np.int32(up)) + np.int32(x[i] > 0)


@numba.njit(nogil=True, cache=True)
def _encode(x, norms, width, levels, word, key, codes):
    draws = np.empty(_BLOCK, np.uint32)
    for block in range(0, x.size, _BLOCK):
        # The counter goes by pairs of words: each call of the generator yields two.
        _words(key, block // 2, draws)
        start, end = block, min(x.size, block + _BLOCK)
        while start < end:
            bucket = start // width
            # Blocks of draws and buckets of norms overlap as they like: up to whichever ends first.
            stop = min(end, (bucket + 1) * width)
            here = draws[start - block : stop - block]
            if norms[bucket] > 0:
                _encode_run(x[start:stop], norms[bucket], levels, word, here, codes[start:stop])
            else:
                codes[start:stop] = 0
            start = stop


@numba.njit(nogil=True, cache=True)
def _decode_run(codes, norm, levels, out):
    for i in range(out.size):
        code = np.int32(codes[i])
        signed = (code >> 1) * (2 * (code & 1) - 1)
        # Divided first, as decode_torch does: the same bits on every device.
        out[i] = out.dtype.type(signed) / levels * norm


@numba.njit(nogil=True, cache=True)
def _decode(codes, norms, width, levels, out):
    for bucket in range(norms.size):
        start, stop = bucket * width, min(codes.size, (bucket + 1) * width)
        _decode_run(codes[start:stop], norms[bucket], levels, out[start:stop])


@numba.njit(nogil=True, cache=True)
def _largest_run(bits, mask):
    best = bits.dtype.type(0)
    for i in range(bits.size):
        best = max(best, bits[i] & mask)
    return best


@numba.njit(nogil=True, cache=True)
def _largest(bits, mask, width, out):
    for bucket in range(out.size):
        out[bucket] = _largest_run(bits[bucket * width : (bucket + 1) * width], mask)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _square_sum_run(x, factor):
    total = 0.0
    for i in range(x.size):
        value = np.float64(x[i]) * factor
        total += value * value
    return total


@numba.njit(nogil=True, cache=True)
def square_sums(x, width, inverse):
    """Return the float64 sum of (x * inverse)^2 per bucket."""
    out = np.empty(inverse.size, np.float64)
    for bucket in range(out.size):
        out[bucket] = _square_sum_run(x[bucket * width : (bucket + 1) * width], inverse[bucket])
    return out


@numba.njit(nogil=True, cache=True)
def _pack(codes, bits, out):
    held, fill, place = 0, 0, 0
    for i in range(codes.size):
        held |= np.int64(codes[i]) << fill
        fill += bits
        while fill >= 8:
            out[place] = held & 255
            held >>= 8
            fill -= 8
            place += 1
    if fill:
        out[place] = held


@numba.njit(nogil=True, cache=True)
def _unpack(data, bits, out):
    held, fill, place = 0, 0, 0
    for i in range(out.size):
        while fill < bits:
            held |= np.int64(data[place]) << fill
            fill += 8
            place += 1
        out[i] = held & ((1 << bits) - 1)
        held >>= bits
        fill -= bits
