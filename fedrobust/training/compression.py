"""Stochastic quantisation of gradients: few bits per coordinate, the right value on average.

References
----------
Zhang et al., Distributed Adversarial Training to Robustify Deep Neural Networks at Scale, UAI 2022
(one L2 norm per tensor, 127 levels). Alistarh et al., QSGD, NeurIPS 2017, section 3 (the quantiser,
and buckets). Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011
(Threefry-2x32-20, the counter-based source of the random bits).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.spec import suggest
from fedrobust.training import compression_kernels as kernels

SCALES = ("l2", "linf")
MAX_LEVELS = 32767
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HEADER = struct.Struct("<4sBBHQ")  # magic, dtype, dimensions, levels, bucket (0: whole tensor)
_MAGIC = b"FRQ1"


@dataclass(frozen=True, eq=False)
class Quantized:
    """One quantised tensor.

    Attributes
    ----------
    codes
        ``2 * level + [x > 0]`` in the shape of the tensor: uint8 up to 127 levels, uint16 above. In
        memory a code is never smaller than a byte; ``to_bytes`` packs it into ``bits`` bits.
    norms
        One norm per bucket, float32 (float64 for a float64 tensor), finite and not negative.
    levels
        Levels per sign, s in the paper: a value is ``norm * level / s``.
    bucket
        Consecutive coordinates that share a norm; None: the whole tensor.
    dtype
        Type of the quantised tensor.

    Raises
    ------
    ValueError
        If the parts do not fit together.
    """

    codes: Tensor
    norms: Tensor
    levels: int
    bucket: int | None
    dtype: torch.dtype

    def __post_init__(self) -> None:
        _check_settings(self.levels, self.bucket, self.dtype)
        wanted = (_code_type(self.levels), _norm_type(self.dtype))
        if (self.codes.dtype, self.norms.dtype) != wanted:
            got = (self.codes.dtype, self.norms.dtype)
            raise ValueError(f"codes and norms need the types {wanted}, got {got}")
        count = _buckets(self.codes.numel(), self.bucket)
        if tuple(self.norms.shape) != (count,):
            raise ValueError(f"norms need the shape ({count},), got {tuple(self.norms.shape)}")
        if not bool((torch.isfinite(self.norms) & (self.norms >= 0)).all()):
            raise ValueError("norms need finite values of at least 0")
        if 2 * self.levels + 1 < torch.iinfo(self.codes.dtype).max and self.codes.numel():
            # torch has no maximum of uint16.
            wide = self.codes if self.codes.dtype == torch.uint8 else self.codes.to(torch.int32)
            top = int(wide.max())
            if top > 2 * self.levels + 1:
                raise ValueError(f"codes need values up to {2 * self.levels + 1}, got {top}")

    @property
    def bits(self) -> int:
        """Bits per coordinate on the wire, sign included: 8 for 127 levels."""
        return (2 * self.levels + 1).bit_length()

    @property
    def nbytes(self) -> int:
        """Payload on the wire in bytes: packed codes and norms; the header comes on top."""
        packed = -(-self.codes.numel() * self.bits // 8)
        return packed + self.norms.numel() * self.norms.element_size()

    def dequantize(self, dtype: torch.dtype | None = None, *, out: Tensor | None = None) -> Tensor:
        """Return the quantised values, on the device of the codes.

        In the tensor's own type unless ``dtype`` is given: rounding to a half type costs the
        unbiasedness, so a server that averages asks for ``torch.float32``. A value beyond the half
        type's range becomes its largest finite one. ``out``, contiguous and in the type of the
        norms, receives the values instead of fresh memory: a row of the server's matrix, say.

        Raises
        ------
        ValueError
            If ``out`` has another type, device or size, or is not contiguous.
        """
        if out is not None:
            self._check_target(out)
        values = _decode(self, out)
        dtype = values.dtype if out is not None else dtype or self.dtype
        if dtype in (torch.float16, torch.bfloat16):
            limit = torch.finfo(dtype).max
            values.clamp_(-limit, limit)
        return values.reshape(self.codes.shape).to(dtype)

    def _check_target(self, out: Tensor) -> None:
        wanted = (self.norms.dtype, self.codes.device, self.codes.numel(), True)
        got = (out.dtype, out.device, out.numel(), out.is_contiguous())
        if wanted != got:
            raise ValueError(f"out needs (type, device, size, contiguous) {wanted}, got {got}")

    def to_bytes(self) -> bytes:
        """Return header, norms and packed codes, little-endian."""
        shape = self.codes.shape
        head = _HEADER.pack(
            _MAGIC, _DTYPES.index(self.dtype), len(shape), self.levels, self.bucket or 0
        )
        norms = self.norms.cpu().numpy()
        norms = norms.astype(norms.dtype.newbyteorder("<"), copy=False)
        codes = kernels.pack(self.codes.cpu().reshape(-1).numpy(), self.bits)
        return head + struct.pack(f"<{len(shape)}Q", *shape) + norms.tobytes() + codes.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Quantized:
        """Read what ``to_bytes`` wrote; nothing is allocated before every length is checked.

        Raises
        ------
        ValueError
            If the bytes are anything else: cut, extended, or with impossible settings or values.
        """
        shape, levels, bucket, dtype = _read_header(data)
        count, bits = math.prod(shape), (2 * levels + 1).bit_length()
        norm_type = np.dtype("<f8" if dtype == torch.float64 else "<f4")
        start = _HEADER.size + 8 * len(shape)
        middle = start + _buckets(count, bucket) * norm_type.itemsize
        end = middle + -(-count * bits // 8)
        # Before anything is made of it: a header may claim any size.
        if len(data) != end:
            raise ValueError(
                f"a quantised tensor of shape {shape} needs {end} bytes, got {len(data)}"
            )
        # astype copies: torch wants memory that it may write to, in the machine's byte order.
        norms = np.frombuffer(data[start:middle], norm_type).astype(norm_type.newbyteorder("="))
        codes = kernels.unpack(np.frombuffer(data, np.uint8, offset=middle), count, bits)
        return cls(
            torch.from_numpy(codes).reshape(shape), torch.from_numpy(norms), levels, bucket, dtype
        )


def levels_for(bits: int) -> int:
    """Return the number of levels per sign that fits ``bits`` bits with the sign: 127 for 8.

    Raises
    ------
    ValueError
        If ``bits`` is not between 2 and 16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"quantisation needs 2 to 16 bits, got {bits}")
    return 2 ** (bits - 1) - 1


def quantize(
    x: Tensor,
    *,
    levels: int = 127,
    scale: str = "l2",
    bucket: int | None = None,
    generator: torch.Generator,
) -> Quantized:
    """Round every coordinate to one of two neighbouring levels at random, so that E Q(x) = x.

    With r = levels * |x_j| / norm, level floor(r) + 1 is taken with probability r - floor(r). The
    probability is met within 2^-32; r is computed in float32 (float64 for float64 input).
    The variance is norm^2 / levels^2 * sum_j p_j (1 - p_j), with p_j = r_j - floor(r_j), at most
    min(d / (4 levels^2), sqrt(d) / levels) * norm^2 under the L2 norm.

    Parameters
    ----------
    x
        float16, bfloat16, float32 or float64, any shape, finite.
    levels
        Levels per sign, 1 to 32767; ``levels_for(bits)`` fills 2 to 16 bits.
    scale
        "l2": the norm of the bucket (the paper's). "linf": its largest absolute value, which is
        far less noisy on large buckets.
    bucket
        Consecutive coordinates that share a norm; None: the whole tensor (the paper's).
    generator
        Draws the 64-bit key of a counter-based stream: the same key gives the same draws on every
        device, whatever the thread count.

    Raises
    ------
    ValueError
        For NaN or Inf in ``x``, a norm beyond float32, another type, or an impossible setting.

    References
    ----------
    Zhang et al., UAI 2022, section 3 and released code (class RandomQuantizer). The released
    decoder divides a uint8 by two without flooring and adds norm / (2 levels) to every positive
    coordinate; this one does not.
    """
    _check_settings(levels, bucket, x.dtype)
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; {suggest(scale, list(SCALES))}")
    flat = x.detach().to(_norm_type(x.dtype)).contiguous().reshape(-1)
    width = bucket or max(flat.numel(), 1)
    norms = _norms(flat, width, scale)
    if not bool(torch.isfinite(norms).all()):
        raise Refusal(f"quantize needs finite values whose {scale} norm is finite too")
    # One draw whatever the values are: what is drawn next must not depend on them.
    key = torch.randint(2**32, (2,), generator=generator, device=generator.device).tolist()
    codes = torch.empty(flat.shape, dtype=_code_type(levels), device=x.device)
    if x.device.type == "cpu":
        kernels.encode(flat.numpy(), norms.numpy(), width, levels, key, codes.numpy())
    else:
        codes = kernels.encode_torch(flat, norms, width, levels, key).to(codes.dtype)
    return Quantized(codes.reshape(x.shape), norms, levels, bucket, x.dtype)


def _check_settings(levels: int, bucket: int | None, dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"quantisation needs a floating-point tensor, got {dtype}")
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels needs an integer from 1 to {MAX_LEVELS}, got {levels!r}")
    if bucket is not None and (not isinstance(bucket, int) or bucket < 1):
        raise ValueError(f"bucket needs an integer of at least 1, or None, got {bucket!r}")


def _code_type(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 127 else torch.uint16


def _norm_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _buckets(count: int, bucket: int | None) -> int:
    return -(-count // (bucket or max(count, 1)))


def _read_header(data: bytes) -> tuple[tuple[int, ...], int, int | None, torch.dtype]:
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError("these bytes are no quantised tensor")
    _, dtype, dimensions, levels, bucket = _HEADER.unpack_from(data)
    if dtype >= len(_DTYPES) or len(data) < _HEADER.size + 8 * dimensions:
        raise ValueError("the header of the quantised tensor is cut or unknown")
    shape = struct.unpack_from(f"<{dimensions}Q", data, _HEADER.size)
    if math.prod(max(size, 1) for size in shape) >= 2**48:  # strides of an empty shape count too
        raise ValueError(f"a quantised tensor of shape {shape} is too large")
    _check_settings(levels, bucket or None, _DTYPES[dtype])
    return shape, levels, bucket or None, _DTYPES[dtype]


def _norms(flat: Tensor, width: int, scale: str) -> Tensor:
    """Return one norm per bucket, summed in float64 over values scaled into [-1, 1]."""
    if not flat.numel():
        return flat.new_empty(0)
    measure = kernels.peaks_and_sums if flat.device.type == "cpu" else kernels.peaks_and_sums_torch
    peaks, units, sums = measure(flat, width, squares=scale == "l2")
    return peaks if sums is None else (units * sums.sqrt()).to(flat.dtype)


def _decode(packet: Quantized, out: Tensor | None) -> Tensor:
    flat, norms = packet.codes.reshape(-1), packet.norms
    width = packet.bucket or max(flat.numel(), 1)
    if out is None:
        out = torch.empty(flat.shape, dtype=norms.dtype, device=flat.device)
    target = out.detach().view(-1)
    if flat.device.type == "cpu":
        kernels.decode(flat.numpy(), norms.numpy(), width, packet.levels, target.numpy())
    else:
        kernels.decode_torch(flat, norms, width, packet.levels, target)
    return out
