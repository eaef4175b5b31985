"""What a round's row says: who was found, how many files can be and are wrong, and the bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from flwr.app import ConfigRecord, Message

from fedrobust.flower.adversary_grid import NOTES
from fedrobust.redundancy import Assignment, Corruption
from fedrobust.redundancy.bounds import wrong_bound
from fedrobust.redundancy.decision import Verdict
from strategies.base import Row
from strategies.redundancy.exchange import RoundLog
from strategies.redundancy.second_stage import Aggregate
from strategies.redundancy.settings import Settings

WORD = 40  # characters of a note


def without_rows(files: Assignment, out: Collection[int]) -> Assignment:
    """Return an assignment in which the workers that do not take part hold nothing."""
    if not out:
        return files
    matrix = files.matrix.clone()
    matrix[sorted(out)] = False
    return Assignment(matrix)


def verdict(found: Verdict) -> Row:
    """Return what was detected."""
    return {
        "flagged": list(found.flagged),
        "accepted": found.accepted,
        "cliques": found.cliques,
        "capped": found.capped,
    }


def bound_of(
    found: Verdict, assigned: Assignment, present: Sequence[int], *, settings: Settings, q: int
) -> int | None:
    """Return the most files that can be wrong among those that a verdict keeps."""
    if found.bound is None:
        return 0
    whole = len(present) == settings.workers
    made = settings.plan(1).base if whole else assigned  # labels only rename the workers
    subsets = settings.scheme == "aspis" and int(assigned.copies.min()) == settings.replication
    heard = None if whole else tuple(present)
    return _bound(_Same(made), q, found.bound, heard, subsets)


def outcome(
    done: Aggregate,
    found: Verdict,
    ledger: RoundLog,
    *,
    files: Assignment,
    wrong: int | None,
    truth: Corruption | None,
) -> Row:
    """Return what became of the files; with the truth, how much of it is right (simulation).

    ``wrong_files`` and ``wrong_bound`` are shares of the files kept.
    """
    kept = len(done.origin)
    row: Row = {
        "path": done.path,
        "caught": {str(worker): why for worker, why in sorted(ledger.caught.items())},
        "files": files.files,
        "kept_files": kept,
        "dropped": files.files - kept,
        "wrong_bound": None if wrong is None else round(min(wrong / kept, 1.0), 6),
    }
    if truth is not None:
        count = sum(bool(truth.distorted[worker, file]) for file, worker in done.origin.items())
        row["wrong_files"] = round(count / kept, 6)
    return row | quality({*found.flagged, *ledger.caught}, truth)


def quality(flagged: set[int], truth: Corruption | None) -> Row:
    """Precision and recall of the flagged workers; None where there is nothing to divide by."""
    if truth is None:
        return {}
    byzantine = set(truth.adversaries)
    hits = len(flagged & byzantine)
    return {
        "byzantine": sorted(byzantine),
        "precision": round(hits / len(flagged), 6) if flagged else None,
        "recall": round(hits / len(byzantine), 6) if byzantine else None,
    }


def search(heard: Mapping[int, Message]) -> Row:
    """Return what the attack says of its choice, for the row of a simulated run: ``search``.

    From the first worker that tells; words are cut, and numbers that are none left out.
    """
    for worker in sorted(heard):
        found = heard[worker].content.get(NOTES) if heard[worker].has_content() else None
        if isinstance(found, ConfigRecord):
            told = {str(key)[:WORD]: _plain(value) for key, value in found.items()}
            return {"search": {key: value for key, value in told.items() if value is not None}}
    return {}


def _plain(value: object) -> float | str | None:
    if isinstance(value, str):
        return value[:WORD]
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def costs(ledger: RoundLog, clients: Mapping[int, int]) -> Row:
    """Bytes by stage, without headers, and whose answers could not be used."""
    node_of = {client: node for node, client in clients.items()}
    rejected = [{"node": node_of.get(e["client"]), **e} for e in ledger.refused]
    return {
        "rejected": sorted(rejected, key=lambda e: e["client"]),
        "bytes_up": sum(ledger.bytes_up.values()),
        "bytes_down": sum(ledger.bytes_down.values()),
        "bytes_by_stage": dict(ledger.bytes_up),
    }


class _Same:
    """An assignment that equals another with the same matrix, so that bounds are computed once."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._key = assignment.matrix.numpy().tobytes()

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key


@lru_cache(maxsize=64)
def _bound(
    made: _Same, q: int, kind: str, heard: tuple[int, ...] | None, subsets: bool
) -> int | None:
    return wrong_bound(made.assignment, q=q, kind=kind, heard=heard, subsets=subsets)
