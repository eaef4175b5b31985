"""Promises that can be checked: digests, commitments with a nonce, and linear sketches.

A worker first commits to each file's value; the server decides on digests who is believed; what is
sent afterwards is checked. A digest checks one vector; a sketch, being linear, checks a sum.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import check_tolerance
from fedrobust.seeds import generator

BLOCK = 65_536


def digest(vector: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's float32 values as little-endian bytes, row by row.

    The shape is not part of it. Bitwise: 0.0 and -0.0 differ.

    Raises
    ------
    ValueError
        For another dtype: a silent conversion would let different values agree.
    """
    if vector.dtype != torch.float32:
        raise ValueError(f"a digest needs float32 values, got {vector.dtype}")
    array = vector.detach().contiguous().cpu().numpy().astype("<f4", copy=False)
    return hashlib.sha256(array.tobytes()).digest()


def commit(value: bytes, *, node: int, nonce: bytes) -> bytes:
    """Commit to a digest (or any bytes) without showing it, so that nobody can copy it.

    SHA-256 over the node's number, the nonce's length, the nonce and the value. The nonce needs 16
    random bytes at least and is used once; the node's number keeps others from replaying it.
    """
    if len(nonce) < 16:
        raise ValueError(f"a nonce needs at least 16 bytes, got {len(nonce)}")
    head = node.to_bytes(8, "little", signed=True) + len(nonce).to_bytes(4, "little")
    return hashlib.sha256(head + nonce + value).digest()


def opens(commitment: bytes, value: bytes, *, node: int, nonce: bytes) -> bool:
    """Whether a revealed value and nonce are what the node committed to."""
    return len(nonce) >= 16 and hmac.compare_digest(
        commitment, commit(value, node=node, nonce=nonce)
    )


def sketch(values: Tensor, *, seed: int, size: int = 64) -> Tensor:
    """Project vectors (..., d) on ``size`` random signs: float64 (..., size), linear in the values.

    Scaled so that the squared norm is kept on average (relative deviation about sqrt(2 / size)).
    The seed must be unknown until the values are committed to: who knows it can move a value inside
    the sketch's null space. Signs are drawn block by block; memory is O(size x block).
    """
    if size < 1:
        raise ValueError(f"a sketch needs a size of at least 1, got {size}")
    dimension = values.shape[-1]
    result = torch.zeros(*values.shape[:-1], size, dtype=torch.float64)
    for number, start in enumerate(range(0, dimension, BLOCK)):
        part = values[..., start : start + BLOCK].detach().cpu().double()
        source = generator(seed, "sketch", round=number)
        bits = torch.randint(0, 2, (part.shape[-1], size), generator=source, dtype=torch.int8)
        result += part @ (2.0 * bits.double() - 1.0)
    return result / size**0.5


def sketches_agree(first: Tensor, second: Tensor, *, tolerance: float) -> bool:
    """Whether two sketches differ by at most the relative L2 ``tolerance`` (< 1).

    The distance of the sketches estimates that of the vectors; not finite never agrees.
    """
    check_tolerance(tolerance)
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return False
    gap = torch.linalg.vector_norm(first - second)
    largest = max(torch.linalg.vector_norm(first), torch.linalg.vector_norm(second))
    return bool(gap <= tolerance * largest)


def check_sum(
    total: Tensor, sketches: Sequence[Tensor] | Tensor, *, seed: int, tolerance: float = 1e-5
) -> bool:
    """Whether a vector (d,) is the sum of the files whose sketches (files, size) are accepted.

    ``tolerance`` is relative to the sum of the sketches' norms, since a float32 sum rounds in that
    proportion; a liar may move the sum by as much.
    """
    check_tolerance(tolerance)
    parts = sketches if isinstance(sketches, Tensor) else torch.stack(list(sketches))
    own = sketch(total, seed=seed, size=parts.shape[-1])
    if not (torch.isfinite(own).all() and torch.isfinite(parts).all()):
        return False
    gap = torch.linalg.vector_norm(own - parts.sum(0))
    return bool(gap <= tolerance * torch.linalg.vector_norm(parts, dim=-1).sum())
