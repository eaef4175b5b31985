"""An audit's result: verdict, cells, remedy; as a frame, as JSON, as a page."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.audit.application import Application
from experiments.audit.cell import GRID, WRAPPER
from experiments.audit.judgement import Verdict, not_audited, verdict
from experiments.audit.outcomes import Finding
from experiments.audit.page import page
from experiments.audit.plan import ATTACK, BROKEN_REPLY, Defence, Options, Outcome
from experiments.audit.text import plain
from fedrobust import plugins

SCHEMA = 1
LINES = {
    WRAPPER: 'from fedrobust.flower import Robust\nstrategy = Robust(strategy, rule="{rule}")',
    GRID: 'from fedrobust.flower import RobustGrid\ngrid = RobustGrid(grid, rule="{rule}")',
}
USE = "from fedrobust import plugins\nplugins.use({file!r})  # where {rule} is written\n"
LEGACY_LINES = """from fedrobust.flower import RobustGrid, whole_rounds
app = ServerApp()
@app.main()
def main(grid, context):
    with whole_rounds():
        ServerApp(server_fn=server_fn)(RobustGrid(grid, rule="{rule}"), context)"""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    summary
        The verdict with its score, threshold and exit code.
    outcome
        Everything that the phases found.
    hashes
        SHA-256 of the app's folder before and after.
    """

    application: Application
    options: Options
    outcome: Outcome
    summary: Verdict
    hashes: tuple[str, str]
    seconds: float
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        application: Application,
        options: Options,
        outcome: Outcome,
        *,
        hashes: tuple[str, str],
        seconds: float,
        versions: dict[str, str],
    ) -> Audit:
        """Draw the verdict."""
        if hashes[0] != hashes[1]:
            stop = "the app's folder changed while it was audited: the cells may not be alike"
            made = not_audited(stop, options.threshold)
        elif outcome.stop:
            made = not_audited(plain(outcome.stop), options.threshold)
        else:
            made = verdict(outcome.of(BROKEN_REPLY, ATTACK), options.threshold)
        return cls(application, options, outcome, made, hashes, seconds, versions)

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"weak"`` or ``"not audited"``."""
        return self.summary.word

    @property
    def exit_code(self) -> int:
        """0 holds, 1 weak, 3 could not be audited."""
        return self.summary.exit_code

    @property
    def cells(self) -> pd.DataFrame:
        """One row a cell: phase, attack, k, defence, seam, seed, outcome, value, fall, ..."""
        return pd.DataFrame([self._row(phase, found) for phase, found in self.outcome.findings])

    @property
    def best(self) -> Defence | None:
        """The defence that saves most, then costs least; None where none saves anything."""
        usable = [d for d in self.outcome.defences if not d.why and d.saved]
        return max(usable, key=lambda d: (d.saved, -(d.cost or 0.0)), default=None)

    @property
    def remedy(self) -> str:
        """The lines that were measured; empty where no defence helps."""
        if self.best is None:
            return ""
        kind = self.outcome.kind
        legacy = kind is not None and kind.shape.startswith("the older API")
        lines = LEGACY_LINES if legacy else LINES[self.best.seam]
        return self._loading(self.best.name) + lines.format(rule=self.best.name)

    def _loading(self, rule: str) -> str:
        """Return the lines that bring a rule of the user's own, where it is one."""
        names = {part.partition(":")[0] for part in rule.split("+")}
        own = [file for file in self.options.use if names & plugins.names_in(file, "rule")]
        return "".join(USE.format(file=file, rule=rule) for file in own)

    def command(self, *more: str) -> str:
        """Return the call on the command line, with what decides a cell's numbers and verdict."""
        options, changed = self.options, self.application.changed
        words = ["fedrobust", "audit", str(self.application.folder)]
        for key, value in changed.get("overrides", {}).items():
            words += ["-o", f"{key}={value}"]
        given = {"--nodes": changed.get("nodes"), "--metric": options.metric}
        given |= {"--seeds": options.seeds} if options.seeds != Options.seeds else {}
        given |= (
            {"--tolerance": options.tolerance} if options.tolerance != Options.tolerance else {}
        )
        for name, value in given.items():
            words += [name, str(value)] if value is not None else []
        for file in options.use:
            words += ["--use", str(file)]
        quick = ["--quick"] if options.quick else []
        return shlex.join([*words, *quick, *more])

    def _row(self, phase: str, found: Finding) -> dict[str, Any]:
        run, cell = found.run, found.run.cell
        return {
            "phase": phase,
            **asdict(cell),
            "outcome": found.outcome,
            "value": found.value,
            "fall": found.fall,
            "replaced": run.facts.get("replaced"),
            "refused": run.facts.get("refused"),
            "client_errors": run.facts.get("client_error_count"),
            "seconds": run.seconds,
            "reason": plain(found.reason),
            "repeat": self.command("--cell", cell.label),
        }

    def document(self) -> dict[str, Any]:
        """Return everything as plain values."""
        judge, kind = self.outcome.judge, self.outcome.kind
        rows = [self._row(phase, found) for phase, found in self.outcome.findings]
        return {
            "schema_version": SCHEMA,
            "app": {
                "name": plain(self.application.name),
                "folder": str(self.application.folder),
                "nodes": self.application.nodes,
                "shape": kind.shape if kind else None,
                "run_config": self.application.run_config,
                "sha256_before": self.hashes[0],
                "sha256_after": self.hashes[1],
            },
            "versions": self.versions,
            "seconds": round(self.seconds, 1),
            "verdict": asdict(self.summary),
            "metric": None if judge is None else {**asdict(judge.metric), **asdict(judge.baseline)},
            "cells": [{k: _finite(v) for k, v in row.items()} for row in rows],
            "breaks_from": self.outcome.starts,
            "defences": [asdict(defence) for defence in self.outcome.defences],
            "remedy": self.remedy,
            "not_tried": [{"what": plain(w), "why": plain(y)} for w, y in self.outcome.not_tried],
            "notes": [plain(note) for note in self.outcome.notes],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the document as JSON text; write it where a path is given."""
        # NaN is no JSON: ``_finite`` has made text of it, and what it missed is an error here.
        text = json.dumps(self.document(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """Return one self-contained page; write it where a path is given."""
        text = page(self.document())
        if path is not None:
            Path(path).write_text(text)
        return text

    def _repr_html_(self) -> str:
        return self.to_html()


def _finite(value: Any) -> Any:
    """JSON knows no NaN: text takes its place."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
