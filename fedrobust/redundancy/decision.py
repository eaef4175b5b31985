"""What a round's copies prove: who is flagged, whose copy stands for each file, what may follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import MISSING, agreement
from fedrobust.redundancy.bounds import CORNERED, VOTE, WHOLLY
from fedrobust.redundancy.contested import uncontested
from fedrobust.redundancy.detection import RULES, detect
from fedrobust.redundancy.voting import choose, representatives, without
from fedrobust.redundancy.window import Window, window_init, window_step

CONTESTED = "contested"
ENOUGH = 0.5  # of the kept files must be sure before the others are left out


@dataclass(frozen=True, kw_only=True)
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
        Whether the honest workers are known (cliques), or all q Byzantine ones are (windows).
    plain
        Whether the plain mean of the chosen values is enough. Otherwise some may be wrong.
    known
        Whether every Byzantine worker is convicted: what the others say needs no check.
    bound
        Which bound holds for the wrong files, a ``kind`` of `bounds.wrong_bound`; None: no file is
        wrong.
    cliques, capped
        How many cliques decided, and whether a search was cut short.
    """

    chosen: Tensor
    trusted: Tensor
    flagged: tuple[int, ...] = ()
    accepted: bool = False
    plain: bool = False
    known: bool = False
    bound: str | None = VOTE
    cliques: int = 0
    capped: bool = False

    def holders(self, labels: Tensor) -> dict[int, list[int]]:
        """Return, for each file kept, the workers that hold the chosen value, lowest first."""
        kept = (self.chosen >= 0).nonzero().flatten()
        values = labels[self.chosen[kept], kept]
        same = (labels[:, kept] == values) & self.trusted[:, None]
        found: dict[int, list[int]] = {int(file): [] for file in kept}
        for place, worker in same.T.nonzero().tolist():
            found[int(kept[place])].append(worker)
        return found


def judge(
    labels: Tensor,
    *,
    q: int,
    detection: str,
    length: int,
    window: Window | None = None,
    copies: Tensor | None = None,
) -> tuple[Verdict, Window | None]:
    """Detect and vote on one round's label matrix (workers, files).

    Parameters
    ----------
    labels
        See `fedrobust.redundancy.agreement`; ``MISSING`` copies are no evidence.
    q
        The most Byzantine workers there can be.
    detection
        "contested": see `uncontested`; the plain mean over the sure files where they are at least
        half of the kept ones, or where every file was given to more than q workers. "strict" or
        "paper": cliques, see `detect`. After an acceptance the plain mean is enough only if exactly
        q workers are flagged (with fewer, Byzantine workers may own files alone); the paper's rule
        takes it after every acceptance. "window": degrees over ``length`` rounds, see
        `window_step`; flags may be stale, so the second stage stays robust, as in the paper's text.
        "none": votes.
    window
        State of the last round, for "window".
    copies
        (files,): how many workers were asked for each file, see `majority`.

    Returns
    -------
    The verdict, and the window's next state (None without windows).

    Reference
    ---------
    ISIT 2022 and ToN 2023. That fewer than q flagged keeps the robust second stage is case 2 of
    the authors' code; its plain mean in Aspis+ once q are flagged (case 3) is not taken: where the
    Byzantine workers have changed inside the window the flags are stale. A tie among the copies
    that are not flagged drops the file, an interpretation.
    """
    everyone = (labels != MISSING).any(1)
    if copies is None:
        copies = (labels != MISSING).sum(0)
    if detection == CONTESTED:
        return _by_contest(labels, q, everyone, copies), None
    if detection in RULES:
        return _by_cliques(labels, q, detection, everyone, copies), None
    if detection == "window":
        return _by_degrees(labels, q, length, window, copies)
    return Verdict(chosen=representatives(labels, copies=copies), trusted=everyone), None


def _by_contest(labels: Tensor, q: int, everyone: Tensor, copies: Tensor) -> Verdict:
    found = uncontested(labels, q=q, copies=copies)
    kept, enough = found.chosen >= 0, bool((copies > q).all())
    # Without a sure file there is nothing to average that is known to be right.
    plain = bool(found.sure.any()) and (enough or int(found.sure.sum()) >= ENOUGH * int(kept.sum()))
    flagged = (everyone & ~found.candidates).nonzero().flatten().tolist()
    return Verdict(
        chosen=torch.where(found.sure, found.chosen, -1) if plain else found.chosen,
        trusted=found.candidates,
        flagged=tuple(flagged),
        accepted=plain,
        plain=plain,
        # All q are out: who is left is honest.
        known=len(flagged) == q,
        bound=None if plain else WHOLLY,
        capped=found.capped,
    )


def _by_cliques(labels: Tensor, q: int, rule: str, everyone: Tensor, copies: Tensor) -> Verdict:
    seen = agreement(labels)
    found = detect(seen.counts, q=q, files_per_pair=seen.shared, rule=rule)
    trusted = everyone.clone()
    # The paper's rule lets the convicted vote on; the strict one, below, does not.
    voters, assigned = labels, copies
    if found.accepted:
        trusted[:] = False
        trusted[sorted(found.honest)] = True
    elif rule == "strict":  # the degree alone convicts: such workers have no vote
        trusted[sorted(found.byzantine)] = False
        voters, assigned = _left(labels, copies, found.byzantine)
    known = found.accepted and len(found.byzantine) == q
    plain = found.accepted and (rule == "paper" or known)
    return Verdict(
        chosen=choose(voters, found, copies=assigned),
        trusted=trusted,
        flagged=tuple(sorted(found.byzantine)),
        accepted=found.accepted,
        plain=plain,
        known=known,
        bound=None if known else (WHOLLY if found.accepted and rule == "strict" else CORNERED),
        cliques=len(found.cliques),
        capped=found.capped,
    )


def _by_degrees(
    labels: Tensor, q: int, length: int, window: Window | None, copies: Tensor
) -> tuple[Verdict, Window]:
    seen = agreement(labels)
    state = window_init(len(labels)) if window is None else window
    state = window_step(state, seen.counts, q=q, files_per_pair=seen.shared, length=length)
    left, assigned = _left(labels, copies, state.flagged)
    verdict = Verdict(
        chosen=representatives(left, copies=assigned),
        trusted=(left != MISSING).any(1),
        flagged=tuple(sorted(state.flagged)),
        accepted=len(state.flagged) == q,
    )
    return verdict, state


def _left(
    labels: Tensor, copies: Tensor, byzantine: tuple[int, ...] | frozenset[int]
) -> tuple[Tensor, Tensor]:
    """Return the labels and the assigned copies without the convicted workers."""
    gone = (labels[sorted(byzantine)] != MISSING).sum(0)
    return without(labels, byzantine), copies - gone
