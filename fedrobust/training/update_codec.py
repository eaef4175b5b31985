"""A whole update as one packet of bytes: each parameter tensor quantised on its own.

References
----------
Zhang et al., UAI 2022, released code: one norm per parameter tensor, codes and norms on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.training.compression import Quantized, levels_for, quantize

_HEADER = 16 + 8  # of one quantised tensor of one dimension


@dataclass(frozen=True)
class Codec:
    """How both sides write an update (d,): settings that were agreed before the first round.

    Attributes
    ----------
    sizes
        Values in each parameter tensor, in order; their sum is d.
    bits, scale, bucket
        See ``quantize``; bucket 0 is one norm per parameter tensor.
    """

    sizes: tuple[int, ...]
    bits: int = 8
    scale: str = "l2"
    bucket: int = 0

    def encode(self, update: Tensor, *, generator: torch.Generator) -> bytes:
        """Quantise an update (d,) and return its bytes.

        Raises
        ------
        ValueError
            If the update has another length or is not finite.
        """
        if tuple(update.shape) != (sum(self.sizes),):
            raise ValueError(f"the codec needs ({sum(self.sizes)},), got {tuple(update.shape)}")
        levels, bucket = levels_for(self.bits), self.bucket or None
        return b"".join(
            quantize(
                part, levels=levels, scale=self.scale, bucket=bucket, generator=generator
            ).to_bytes()
            for part in update.float().split(list(self.sizes))
        )

    def decode(self, data: bytes) -> Tensor:
        """Return the update (d,) that the bytes hold, float32, trusting none of their claims.

        Raises
        ------
        ValueError
            If the bytes are not exactly one packet of these sizes and settings.
        """
        # From the settings that were agreed, not from what the packet says of itself.
        lengths = self.lengths()
        if len(data) != sum(lengths):
            raise ValueError(f"a packet needs {sum(lengths)} bytes, got {len(data)}")
        result, place, offset = torch.empty(sum(self.sizes)), 0, 0
        for size, length in zip(self.sizes, lengths, strict=True):
            part = Quantized.from_bytes(data[offset : offset + length])
            self._check(part, size)
            # Straight into its place: no second copy of the update.
            part.dequantize(out=result[place : place + size])
            place, offset = place + size, offset + length
        return result

    def lengths(self) -> list[int]:
        """Return the bytes that each parameter tensor takes, header included."""
        return [
            _HEADER + 4 * -(-size // (self.bucket or max(size, 1))) + -(-size * self.bits // 8)
            for size in self.sizes
        ]

    def _check(self, part: Quantized, size: int) -> None:
        wanted = ((size,), levels_for(self.bits), self.bucket or None, torch.float32)
        got = (tuple(part.codes.shape), part.levels, part.bucket, part.dtype)
        if wanted != got:
            raise ValueError(
                f"a packet part needs (shape, levels, bucket, type) {wanted}, got {got}"
            )


def on_the_grid(update: Tensor, codec: Codec, *, generator: torch.Generator) -> Tensor:
    """Return what the other side will read: the update encoded and decoded."""
    return codec.decode(codec.encode(update, generator=generator))


def ratio(codec: Codec) -> float:
    """Return how many times smaller a packet is than the update in float32."""
    return 4 * sum(codec.sizes) / sum(codec.lengths())


def layers(vector: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return views of a vector (d,), one per parameter tensor."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = vector.split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
