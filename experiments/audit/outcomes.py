"""What a cell's run means: the app held, it broke in some way, or it is no result at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.audit.cell import CLEAN, EXITED, HUNG, RAISED, Run
from experiments.audit.quality import Judge

HOLDS, DEGRADES, NAN, ENDS, HANGS = "holds", "degrades", "NaN", "ends the run", "hangs"
NO_RESULT = "no result"
BROKEN = (DEGRADES, NAN, ENDS, HANGS)


@dataclass(frozen=True)
class Finding:
    """One judged cell.

    Attributes
    ----------
    outcome
        One of the words above.
    value
        The quality; None where there is none.
    fall
        How much worse than the clean runs.
    reason
        What was raised, or why it is no result.
    """

    run: Run
    outcome: str
    value: float | None = None
    fall: float | None = None
    reason: str = ""

    @property
    def broke(self) -> bool:
        """Whether the attack broke the app."""
        return self.outcome in BROKEN


def judge(run: Run, judge: Judge, arrays: Mapping[str, np.ndarray]) -> Finding:
    """Judge a run by its status, what was seen of it, and its quality.

    A cell in which no reply was replaced, in which an honest client failed on a finite model, or
    whose defence was not reached, shows nothing.
    """
    facts, cell = run.facts, run.cell
    # These two have no facts: their process did not live to write any.
    if run.status == HUNG:
        return Finding(run, HANGS, reason=run.error)
    if run.status == EXITED:
        return Finding(run, ENDS, reason=run.error)
    # Before any error counts: with no reply replaced it is not the attack's doing.
    if cell.attack != CLEAN and not facts.get("replaced"):
        raised = run.error if run.status == RAISED else ""
        why = facts.get("untouched") or raised or "no Byzantine node was asked, or none answered"
        return Finding(run, NO_RESULT, reason=f"no reply was replaced: {why}")
    if run.status == RAISED:
        return Finding(run, ENDS, reason=run.error)
    if cell.defence != CLEAN and not facts.get("defended"):
        return Finding(run, NO_RESULT, reason="the defence was not reached")
    failed = [error for error in facts.get("client_errors", []) if error["finite"]]
    if failed:
        node, why = failed[0]["node"], failed[0]["reason"]
        return Finding(run, NO_RESULT, reason=f"honest node {node} failed: {why}")
    value = judge.value(run, arrays)
    if facts.get("non_finite") or not facts.get("arrays_finite", True):
        return Finding(run, NAN, value, reason="the model holds values that are not finite")
    if value is None:
        return Finding(run, NO_RESULT, reason=f"the run has no {judge.metric.name}")
    if not math.isfinite(value):
        return Finding(run, NAN, reason=f"{judge.metric.name} is not finite")
    fall = judge.fall(value)
    outcome = DEGRADES if fall > judge.baseline.tolerated else HOLDS
    return Finding(run, outcome, value, fall)
