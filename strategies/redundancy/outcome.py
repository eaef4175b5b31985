"""From what the workers sent to the round's aggregate: votes on commitments, or a decoded code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.redundancy import Assignment, Corruption
from fedrobust.redundancy.decision import judge
from fedrobust.redundancy.plan import FilePlan
from strategies.base import Row
from strategies.redundancy import decoding, report
from strategies.redundancy.commitments import held_files, labels_of, read_commitments
from strategies.redundancy.exchange import Exchange, RoundLog
from strategies.redundancy.reveal import Reveal
from strategies.redundancy.second_stage import SecondStage
from strategies.redundancy.settings import Settings
from strategies.redundancy.state import State

Truth = Callable[[int, Assignment], Corruption | None]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round works with."""

    exchange: Exchange
    plan: FilePlan
    asked: tuple[int, ...]
    sent: list[Message]
    arrays: ArrayRecord
    model: Tensor
    statistics: Tensor
    began: float


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What decides a round, the same in all of them.

    Attributes
    ----------
    settings, rule
        The strategy's, and its built rule.
    length
        Of a file's value, d + b.
    layers
        Returns the model's, for rules that work by layers.
    truth
        (round, assignment) -> what is really distorted; None where nobody knows.
    """

    settings: Settings
    rule: Any
    length: int
    layers: Callable[[], Any]
    truth: Truth | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a round came to.

    ``value`` is the aggregate (d + b,), None where the model is kept: then the row says why in
    "kept". ``kept`` are the files that it was made of.
    """

    value: Tensor | None
    state: State
    row: Row
    kept: tuple[int, ...] = ()


def decide(
    basis: Basis, now: Round, heard: Mapping[int, Message], ledger: RoundLog, state: State
) -> Outcome:
    """Return the outcome of a round; a refusal keeps the model, and what was learned of workers."""
    row: Row = {}
    part = _decoded if basis.settings.coded else _voted
    try:
        return part(basis, now, heard, ledger, state, row)
    except Refusal as error:  # nothing to step with, or the rule's own refusal
        row["kept"] = str(error)
        return Outcome(value=None, state=state, row=row)


def _voted(
    basis: Basis,
    now: Round,
    heard: Mapping[int, Message],
    ledger: RoundLog,
    state: State,
    row: Row,
) -> Outcome:
    """Commitments -> labels -> verdict -> values -> the second stage's aggregate."""
    s, files = basis.settings, now.plan.assignment
    assigned = report.without_rows(files, state.members.out)
    q = state.members.left(s.q)
    promised = read_commitments(heard, held_files(files, now.asked), ledger)
    present = sorted({worker for worker, _ in promised})
    check_enough(s, present, q)
    labels, accept = labels_of(
        promised, files, now.exchange, ledger,
        tolerance=state.tolerance, size=s.sketch, secret=state.secret,
    )  # fmt: skip
    begin = time.perf_counter()
    verdict, window = judge(
        labels, q=q, detection=s.detection, length=s.window, window=state.window,
        copies=assigned.copies,
    )  # fmt: skip
    state = replace(state, window=window)
    row["seconds_detect"] = round(time.perf_counter() - begin, 4)
    row |= report.verdict(verdict)
    wrong = report.bound_of(verdict, assigned, present, settings=s, q=q)
    job = Reveal(
        questions=now.exchange, ledger=ledger, promised=promised, holders=verdict.holders(labels),
        length=basis.length, largest=s.largest, late=state.members.late,
    )  # fmt: skip
    try:
        done = _stage(basis, now, state, q).apply(job, verdict, wrong=wrong, accept=accept)
    except Refusal as error:  # the evidence of this round stays in the window
        return Outcome(value=None, state=state, row=row | {"kept": str(error)})
    truth = None if basis.truth is None else basis.truth(now.plan.round, files)
    row |= report.outcome(done, verdict, ledger, files=files, wrong=wrong, truth=truth)
    return Outcome(
        value=done.value,
        state=replace(state, memory=done.memory),
        row=row,
        kept=tuple(sorted(done.origin)),
    )


def _stage(basis: Basis, now: Round, state: State, q: int) -> SecondStage:
    """Return what aggregates the values of the files that are kept."""
    return SecondStage(
        settings=basis.settings, rule=basis.rule, memory=state.memory, secret=state.secret, q=q,
        round=now.plan.round,
        known={
            "layers": basis.layers,
            "model": lambda: torch.cat((now.model, now.statistics)),
        },
    )  # fmt: skip


def check_enough(settings: Settings, present: Sequence[int], q: int) -> None:
    """Raise a Refusal unless enough workers were heard."""
    if q < 0:
        raise Refusal(
            f"more than q={settings.q} workers contradicted themselves or compute other bits: q is"
            " too small"
        )
    least = max(settings.min_replies, 2 * q + 1)
    if len(present) < least:
        raise Refusal(
            f"{len(present)} workers were heard, at least {least} are needed"
            f" (2 q + 1 with q={q}, min_replies={settings.min_replies})"
        )


def _decoded(
    basis: Basis,
    now: Round,
    heard: Mapping[int, Message],
    ledger: RoundLog,
    state: State,
    row: Row,
) -> Outcome:
    """DRACO's cyclic code: the exact mean of all files, whatever s workers send."""
    s = basis.settings
    found = decoding.decode(
        heard, now.asked, ledger,
        workers=s.workers, replication=s.replication, length=basis.length,
        largest=s.largest, secret=state.secret, round=now.plan.round,
    )  # fmt: skip
    row |= {"path": "code", "flagged": list(found.byzantine)}
    truth = None if basis.truth is None else basis.truth(now.plan.round, now.plan.assignment)
    row |= report.quality(set(found.byzantine), truth)
    if not found.consistent:
        raise Refusal("more workers are Byzantine than the code corrects")
    return Outcome(value=(found.total / s.workers).float(), state=state, row=row)
