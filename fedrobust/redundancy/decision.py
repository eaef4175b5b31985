"""What a round's copies prove: who is flagged, whose copy stands for each file, what may follow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedrobust.redundancy.agreement import MISSING, agreement
from fedrobust.redundancy.detection import RULES, detect
from fedrobust.redundancy.voting import choose, representatives, without
from fedrobust.redundancy.window import Window, window_init, window_step


@dataclass(frozen=True)
class Verdict:
    """Outcome of one round's detection and votes.

    Attributes
    ----------
    chosen
        (files,): a worker whose copy stands for the file, or -1 where it is dropped.
    trusted
        (workers,) bool: whose copies may be used at all.
    flagged
        The workers convicted in this round.
    accepted
        Whether the honest workers are known (cliques), or all q liars are (windows).
    plain
        Whether the plain mean of the chosen values is enough. Otherwise some may be wrong.
    cliques, capped
        How many cliques decided, and whether their search was cut short.
    """

    chosen: Tensor
    trusted: Tensor
    flagged: tuple[int, ...] = ()
    accepted: bool = False
    plain: bool = False
    cliques: int = 0
    capped: bool = False

    def holders(self, labels: Tensor) -> dict[int, list[int]]:
        """Return, for each file kept, the workers that hold the chosen value, lowest first."""
        kept = (self.chosen >= 0).nonzero().flatten()
        values = labels[self.chosen[kept], kept]
        same = (labels[:, kept] == values) & self.trusted[:, None]
        return {int(file): same[:, i].nonzero().flatten().tolist() for i, file in enumerate(kept)}


def judge(
    labels: Tensor, *, q: int, detection: str, length: int, window: Window | None = None
) -> tuple[Verdict, Window | None]:
    """Detect and vote on one round's label matrix (workers, files).

    Parameters
    ----------
    labels
        See `fedrobust.redundancy.agreement`; ``MISSING`` copies are no evidence.
    q
        The most liars there can be.
    detection
        "strict" or "paper": cliques, see `detect`. After an acceptance the plain mean is enough
        only if exactly q workers are flagged (with fewer, liars may own files alone); the paper's
        rule takes it after every acceptance. "window": degrees over ``length`` rounds, see
        `window_step`; the plain mean is enough once q workers are flagged and the others agree on
        everything in this round (the second condition is ours: where the liars have changed inside
        the window, the flags are stale, and the mean would take what the new ones send). "none":
        votes.
    window
        State of the last round, for "window".

    Returns
    -------
    The verdict, and the window's next state (None without windows).

    Reference
    ---------
    ISIT 2022 and ToN 2023. That fewer than q flagged keeps the robust second stage is case 2 of
    the authors' code; in Aspis+ a tie among the copies that are not flagged drops the file, an
    interpretation.
    """
    everyone = (labels != MISSING).any(1)
    if detection in RULES:
        return _by_cliques(labels, q, detection, everyone), None
    if detection == "window":
        return _by_degrees(labels, q, length, window)
    return Verdict(representatives(labels), everyone), None


def _by_cliques(labels: Tensor, q: int, rule: str, everyone: Tensor) -> Verdict:
    seen = agreement(labels)
    found = detect(seen.counts, q=q, files_per_pair=seen.shared, rule=rule)
    trusted = everyone.clone()
    if found.accepted:
        trusted[:] = False
        trusted[sorted(found.honest)] = True
    sure = rule == "paper" or len(found.byzantine) == q
    return Verdict(
        choose(labels, found),
        trusted,
        tuple(sorted(found.byzantine)),
        found.accepted,
        found.accepted and sure,
        len(found.cliques),
        found.capped,
    )


def _by_degrees(
    labels: Tensor, q: int, length: int, window: Window | None
) -> tuple[Verdict, Window]:
    seen = agreement(labels)
    state = window_init(len(labels)) if window is None else window
    state = window_step(state, seen.counts, q=q, files_per_pair=seen.shared, length=length)
    left = without(labels, state.flagged)
    others = agreement(left)
    complete = len(state.flagged) == q and bool((others.counts == others.shared).all())
    trusted = (left != MISSING).any(1)
    honest = trusted.nonzero().flatten().tolist() if complete else None
    verdict = Verdict(
        representatives(left, honest=honest),
        trusted,
        tuple(sorted(state.flagged)),
        complete,
        complete,
    )
    return verdict, state
