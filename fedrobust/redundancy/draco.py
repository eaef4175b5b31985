"""DRACO: codes that return the exact sum (or mean) of the files whatever s workers send.

Chen et al., DRACO, ICML 2018: repetition code and cyclic code; both need r >= 2s+1 copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedrobust.redundancy.agreement import exact
from fedrobust.redundancy.assignment import Assignment
from fedrobust.redundancy.voting import majority

PAIR = 2.0**-48  # relative rounding of a double that travels as two float32
LEAST = 1e-5  # relative error of the decoded sum that is still accepted


@dataclass(frozen=True)
class Decoded:
    """``total`` is the sum of all files, (d,); ``byzantine`` the workers whose vector was wrong.

    ``consistent`` is False where more than s workers are Byzantine: the total is then
    worth nothing.
    """

    total: Tensor
    byzantine: tuple[int, ...]
    consistent: bool = True


def check_copies(replication: int, s: int) -> None:
    """Raise a ValueError unless s >= 0 and r >= 2s+1."""
    if s < 0 or replication < 2 * s + 1:
        raise ValueError(f"draco against s={s} needs replication {2 * s + 1}, got {replication}")


def check_precision(workers: int, s: int) -> None:
    """Raise a ValueError where the cyclic code's own rounding would spoil the sum.

    The code's entries grow with n / s. With combinations in double precision the relative error of
    the sum stays below 1e-5 for n <= 45 and every s; at n = 100 the code works for s = 1 and for s
    near n/2 only.
    """
    first, _, code, defect = _cyclic(workers, s)
    rows = np.abs(code).sum(1)
    kept = np.arange(s, workers)  # s neighbours in error: the worst case
    growth = float(np.abs(_weights(first[kept])) @ rows[kept])
    error = growth * max(PAIR, defect / rows.max())
    if error > LEAST:
        raise ValueError(
            f"draco_cyclic with {workers} workers against {s} loses precision: its sum would have a"
            f" relative error of {error:.1g}, at most {LEAST:g} is accepted; use draco_repetition"
        )


def encode_repetition(gradients: Tensor, assignment: Assignment) -> Tensor:
    """Return what honest workers send, (workers, d): the gradient of their group's file.

    ``gradients`` is (files, d), one file per group.
    """
    if (assignment.matrix.sum(1) != 1).any() or len(gradients) != assignment.files:
        raise ValueError("the repetition code needs one file per worker, one gradient per file")
    return gradients[assignment.matrix.byte().argmax(1)]


def decode_repetition(received: Tensor, assignment: Assignment, *, s: int) -> Decoded:
    """Take each group's bitwise majority and add up; (workers, d) -> (d,).

    Raises
    ------
    ValueError
        If a group has fewer than 2s+1 workers.
    """
    check_copies(int(assignment.copies.min()), s)
    total = torch.zeros_like(received[0])
    byzantine: list[int] = []
    consistent = True
    for column in assignment.matrix.T:
        group = column.nonzero().flatten()
        labels = exact(received[group])
        winner = majority(labels[:, None])
        wrong = group[labels != winner]
        byzantine += wrong.tolist()
        consistent = consistent and len(group) - len(wrong) > 0
        if len(wrong) < len(group):
            total = total + received[group[labels == winner][0]]
    byzantine.sort()
    return Decoded(total, tuple(byzantine), consistent and len(byzantine) <= s)


@lru_cache(maxsize=32)
def _cyclic(workers: int, s: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return C1 (n, n-2s), C2 (n, 2s) of the DFT matrix, W (n, n), and the rounding of W.

    W, the combinations sent, is C1 Q with the first row of Q all ones and W[i, j] = 0 unless worker
    i holds task j. Its entries grow with n / s, and the precision of the sum falls with them.
    """
    index = np.arange(workers)
    dft = np.exp(-2j * np.pi * np.outer(index, index) / workers) / np.sqrt(workers)
    first, second = dft[:, : workers - 2 * s], dft[:, workers - 2 * s :]
    code = np.empty((workers, workers), dtype=np.complex128)
    for task in index:
        outside = (task - index) % workers > 2 * s
        # The first row of Q is all ones, so that e1 picks the sum; the rest makes W zero outside.
        column = np.linalg.solve(first[outside, 1:], -first[outside, 0])
        code[:, task] = first @ np.concatenate([[1.0], column])
        # Zero but for rounding: a worker has no value of a task that it does not hold.
        code[outside, task] = 0
    # initial: without errors to correct (s = 0) there is no C2 at all.
    defect = np.abs(second.conj().T @ code).max(initial=0) / np.abs(code).max()
    return first, second, code, float(defect)


def encode_cyclic(gradients: Tensor, *, s: int) -> Tensor:
    """Return what honest workers send: one complex combination of their 2s+1 tasks each.

    ``gradients`` is (n, d), one per task; the result is complex (n, d) of the same precision.
    Worker i combines tasks i, i+1, ..., i+2s (cyclically).

    Raises
    ------
    ValueError
        If n < 2s+1.
    """
    check_copies(len(gradients), s)
    dtype = torch.complex128 if gradients.dtype == torch.float64 else torch.complex64
    code = torch.from_numpy(_cyclic(len(gradients), s)[2]).to(gradients.device, dtype)
    return code @ gradients.to(dtype)


def combination(worker: int, tasks: Mapping[int, Tensor], *, workers: int, s: int) -> Tensor:
    """Return what one honest worker sends, complex128 (d,); ``tasks`` are its own, float32 (d,)."""
    code = _cyclic(workers, s)[2]
    parts = [complex(code[worker, task]) * value.double() for task, value in tasks.items()]
    return torch.stack(parts).sum(0)


def split_floats(values: Tensor) -> Tensor:
    """Write complex128 (d,) as float32 (4, d): real and imaginary part, each a pair high and low.

    A pair keeps 48 bits of the 53; single precision, 24 bits, fails from 25 workers on.
    """
    parts = torch.view_as_real(values).T
    high = parts.float()
    return torch.cat([high, (parts - high.double()).float()])


def join_floats(pairs: Tensor) -> Tensor:
    """Undo `split_floats`: float32 (4, d) to complex128 (d,)."""
    wide = pairs.double()
    return torch.complex(wide[0] + wide[2], wide[1] + wide[3])


def decode_cyclic(
    received: Tensor,
    *,
    s: int,
    generator: torch.Generator,
    slack: float = 100.0,
    rounding: float = 0.0,
) -> Decoded:
    """Recover the sum of all tasks from complex (n, d) vectors of which at most s are wrong.

    The vectors are projected on one random direction, drawn after they came, from a generator that
    nobody who sent one can know: whoever knows the direction adds an error that is orthogonal to
    it. ``rounding`` is the relative rounding of what was received, where it is coarser than its
    type (``PAIR``). Syndromes, error positions and weights are computed in double precision; a
    value counts as zero below ``slack`` times the rounding of the received type, relative to the
    median projection (which Byzantine workers, fewer than half, cannot move beyond the honest
    ones).

    Raises
    ------
    ValueError
        If n < 2s+1 or the vectors are not complex.

    Reference
    ---------
    DRACO, ICML 2018, cyclic code and its decoder. The relative zero test is ours; the authors' code
    uses an absolute one.
    """
    workers = len(received)
    check_copies(workers, s)
    if not received.is_complex():
        raise ValueError(f"the cyclic code needs complex vectors, got {received.dtype}")
    first, second, _, defect = _cyclic(workers, s)
    finite = torch.isfinite(received.real).all(1) & torch.isfinite(received.imag).all(1)
    # One NaN would spread over all syndromes; its row is known to be wrong already.
    clean = torch.where(finite[:, None], received, 0)
    direction = torch.randn(received.shape[1], generator=generator, device=generator.device)
    wide = direction.to(received.device, torch.complex128)
    projected = torch.stack([row.to(torch.complex128) @ wide for row in clean]).cpu().numpy()
    spread = float(torch.linalg.vector_norm(clean, dim=1).double().median())
    honest = max(float(np.median(abs(projected))), spread)
    zero = slack * max(torch.finfo(received.dtype).eps, rounding, defect) * honest
    # One huge wrong vector costs all syndromes digits, in proportion to its size.
    zero += slack * np.finfo(np.float64).eps * float(abs(projected).max())
    wrong = _locate(second.conj().T @ projected, workers, s, zero)
    wrong = sorted(set(wrong) | set((~finite).nonzero().flatten().tolist()))
    right = np.setdiff1d(np.arange(workers), wrong)
    consistent = len(wrong) <= s and _fits(first[right], projected[right], zero)
    rows = right[: max(workers - 2 * s, 0)] if len(wrong) <= s else np.arange(workers - 2 * s)
    weights = _weights(first[right] if consistent else first[rows])
    chosen = torch.from_numpy(right if consistent else rows).to(received.device)
    scale = torch.from_numpy(weights).to(received.device, received.dtype)
    return Decoded((scale @ clean[chosen]).real.clone(), tuple(wrong), consistent)


def _weights(first: np.ndarray) -> np.ndarray:
    """Return the least v with v^T C1[V] = e1: it turns the combinations into the sum."""
    unit = np.zeros(first.shape[1], dtype=np.complex128)
    unit[0] = 1
    # Of least norm, since the entries of v multiply the rounding of what was received.
    return np.linalg.lstsq(first.T, unit, rcond=None)[0]


def _fits(first: np.ndarray, projected: np.ndarray, zero: float) -> bool:
    """Whether the projections are those of a code word, up to rounding."""
    solution = np.linalg.lstsq(first, projected, rcond=None)[0]
    return bool(np.abs(first @ solution - projected).max() <= zero)


def _locate(syndromes: np.ndarray, workers: int, s: int, zero: float) -> list[int]:
    """Find the wrong rows: zeros, among the n-th roots of one, of the error locator polynomial.

    With t errors the syndromes obey a recurrence of order t; the fewest errors that explain them
    are taken.
    """
    if s == 0 or np.abs(syndromes).max() <= zero:
        return []
    roots = np.exp(2j * np.pi * np.arange(workers) / workers)
    for errors in range(1, s + 1):
        rows = np.array([syndromes[k : k + errors] for k in range(2 * s - errors)])
        locator = np.linalg.lstsq(rows, syndromes[errors:], rcond=None)[0]
        value = np.abs(roots**errors - sum(c * roots**k for k, c in enumerate(locator)))
        found = np.sort(np.argsort(value)[:errors])
        if _explains(syndromes, workers, found, zero):
            break
    return found.tolist()


def _explains(syndromes: np.ndarray, workers: int, found: np.ndarray, zero: float) -> bool:
    """Whether errors in the found rows alone can produce the syndromes."""
    order = np.arange(workers - len(syndromes), workers)
    dft = np.exp(2j * np.pi * np.outer(order, found) / workers) / np.sqrt(workers)
    errors = np.linalg.lstsq(dft, syndromes, rcond=None)[0]
    return bool(np.abs(dft @ errors - syndromes).max() <= zero)
