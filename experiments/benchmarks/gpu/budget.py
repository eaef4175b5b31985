"""Case after case within a budget of minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.gpu.ledger import DONE, Ledger, Record
from experiments.benchmarks.gpu.plan import CASES, Case

GRACE = 10.0  # seconds beyond its limit after which a case's process is ended
ROOT = Path(__file__).parents[3]


class Budget:
    """Minutes that are left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Minutes, at least 0."""
        return max(0.0, (self._end - time.monotonic()) / 60)


@dataclass(frozen=True)
class Course:
    """How the cases are run, and where what they say goes.

    Attributes
    ----------
    device, pretend, data_root
        As in ``plan.Scale``.
    folder
        For what cases leave while they run.
    ledger
        Takes every line.
    told
        Called after each line: writes the page.
    """

    device: str
    pretend: bool
    data_root: str | None
    folder: Path
    ledger: Ledger
    told: Callable[[], None]

    def run(self, names: Sequence[str], budget: Budget) -> None:
        """Run the cases, in the order of ``CASES``."""
        for case in (case for name, case in CASES.items() if name in names):
            record = self.ledger.records().get(case.name, Record())
            if record.finished:
                self._say(case, "finished before")
                continue
            self._close(case, self._outcome(case, record, budget))

    def _outcome(self, case: Case, record: Record, budget: Budget) -> str:
        """Run one case where that is possible; return how it stands."""
        if lacks := case.lacks:
            return f"skipped: {', '.join(lacks)} cannot be imported here"
        if budget.left < case.least:
            return f"not measured: budget ({budget.left:.1f} minutes left, needs {case.least:g})"
        # Where it is pretended nothing is timed: a busy machine may take as long as it likes.
        minutes = budget.left if self.pretend else min(case.limit, budget.left)
        self._say(case, f"at most {minutes:.1f} minutes")
        ended = self._measured(case, record, 60 * minutes)
        if self.ledger.records().get(case.name, Record()).finished:
            return DONE
        return ended or f"not all measured within {minutes:.1f} minutes"

    def _measured(self, case: Case, record: Record, seconds: float) -> str:
        """Run a case's process and write its lines; return what went wrong with it, or ""."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self._command(case, record, seconds), cwd=ROOT, stdout=subprocess.PIPE,
                stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
            watch = threading.Timer(seconds + GRACE, end, [process])
            watch.start()
            try:
                for text in process.stdout or ():
                    self._line(case, text)
                code = process.wait()
            finally:
                watch.cancel()
                end(process)  # an interrupted one, and whatever it has started
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1]
        if code == -signal.SIGKILL:
            return f"ended after its limit of {seconds / 60:.1f} minutes"
        return f"failed with exit code {code}: {last[-300:]}" if code else ""

    def _command(self, case: Case, record: Record, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "experiments.benchmarks.gpu.work", case.name,
                   "--device", self.device, "--seconds", str(seconds),
                   "--folder", str(self.folder)]  # fmt: skip
        command += ["--pretend"] if self.pretend else []
        command += ["--data-root", self.data_root] if self.data_root else []
        return [*command, "--skip", *record.measured]

    def _line(self, case: Case, text: str) -> None:
        line = json.loads(text)
        self.ledger.append(case.name, **line)
        self.told()
        if "cell" in line:
            self._say(case, f"{line['cell']}: {line['row'].get('error') or 'measured'}")

    def _close(self, case: Case, status: str) -> None:
        self.ledger.append(case.name, status=status)
        self.told()
        self._say(case, status)

    def _say(self, case: Case, text: str) -> None:
        print(f"{case.name}: {text}", flush=True)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
