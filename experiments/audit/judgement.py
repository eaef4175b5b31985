"""One computation for the verdict's word, its score, the threshold and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.audit.outcomes import HOLDS, NO_RESULT, Finding

HOLDS_CODE, WEAK_CODE, NOT_AUDITED_CODE = 0, 1, 3


@dataclass(frozen=True)
class Verdict:
    """What the audit says.

    Attributes
    ----------
    word
        "holds", "weak" or "not audited".
    score
        The share of attacks that the app withstood, of those with a result, 0 .. 1.
    threshold
        The score from which on the app holds (``--fail-under``).
    exit_code
        0 holds, 1 weak, 3 could not be audited.
    """

    word: str
    score: float | None
    threshold: float
    exit_code: int
    sentence: str


def verdict(findings: Sequence[Finding], threshold: float) -> Verdict:
    """Judge the app by its attacked cells without a defence."""
    results = [finding for finding in findings if finding.outcome != NO_RESULT]
    if not results:
        why = findings[0].reason if findings else "nothing was tried"
        return not_audited(f"no attack had a result: {why}", threshold)
    held = sum(finding.outcome == HOLDS for finding in results)
    score = held / len(results)
    sentence = f"withstood {held} of {len(results)} attacks"
    if score >= threshold:
        return Verdict("holds", score, threshold, HOLDS_CODE, sentence)
    return Verdict("weak", score, threshold, WEAK_CODE, sentence)


def not_audited(reason: str, threshold: float) -> Verdict:
    """Say that nothing can be said."""
    return Verdict("not audited", None, threshold, NOT_AUDITED_CODE, reason)
