"""Bytes that the workers upload in a round, naively and with commitments."""

from __future__ import annotations

from dataclasses import dataclass

from fedrobust.redundancy.assignment import Assignment

DIGEST = 32


@dataclass(frozen=True)
class Traffic:
    """Uploaded bytes of one round, without headers.

    ``naive``: every worker sends every gradient (``busiest``: the most that one worker sends).
    ``digests``: a 32-byte digest per copy. ``per_file``: one gradient per file, as the fallback
    needs. ``per_worker``: one sum per worker, enough after an acceptance.
    """

    busiest: int
    naive: int
    digests: int
    per_file: int
    per_worker: int


def traffic(assignment: Assignment, *, parameters: int, itemsize: int = 4) -> Traffic:
    """Count the bytes of a round for vectors of ``parameters`` values."""
    vector = parameters * itemsize
    copies = int(assignment.matrix.sum())
    return Traffic(
        busiest=max(assignment.loads) * vector,
        naive=copies * vector,
        digests=copies * DIGEST,
        per_file=assignment.files * vector,
        per_worker=assignment.workers * vector,
    )
