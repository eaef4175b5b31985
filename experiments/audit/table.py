"""A table over apps: clean, attacked, defended by ``Robust`` and by ``RobustGrid``.

``python -m experiments.audit.table tests/apps`` prints it as Markdown.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.audit.application import read
from experiments.audit.cell import GRID, WRAPPER, Cell, Run
from experiments.audit.processes import Cells
from experiments.audit.quality import DISTANCE, choose, values

ATTACK, DEFENCE, F = "sign_flip:scale=4.0", "trimmed_mean:f=2", 2
STRATEGIES = ("FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "Krum",
              "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg", "QFedAvg", "DP")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One app, and the run configuration to run it with."""

    app: str
    overrides: dict[str, Any] = field(default_factory=dict)
    metric: str | None = None

    @property
    def text(self) -> str:
        """The row's name."""
        told = ", ".join(f"{key}={value}" for key, value in self.overrides.items())
        return f"{self.app} ({told})" if told else self.app


ROWS = (
    *(Row("strategies", {"strategy": name}) for name in STRATEGIES),
    *(Row("custom_strategy", {"variant": v}) for v in ("aggregate", "start", "minimum", "inside")),
    Row("client_evaluation"),
    Row("no_evaluation"),
    Row("batchnorm"),
    Row("batchnorm", {"strategy": "FedAdam"}),
    Row("other_keys"),
    Row("scaffold"),
    Row("float64"),
    Row("own_loop"),
    Row("own_loop", {"pull": True}),
    Row("old_api"),
    Row("old_workflow"),
    Row("trees"),
)


def measure(cells: Cells, folder: Path, row: Row) -> dict[str, str]:
    """Run the four cells of one row."""
    cells.switch(read(folder / row.app, overrides=row.overrides))
    attacked: dict[str, Any] = {"attack": ATTACK, "k": F}
    others = [
        Cell(**attacked),
        *(Cell(**attacked, defence=DEFENCE, seam=seam) for seam in (WRAPPER, GRID)),
    ]
    runs = list(cells.run([Cell(), *others]).values())
    clean = runs[0]
    metric, _ = choose([clean], row.metric)
    if metric.source == DISTANCE:
        raise ValueError(f"{row.text} has no metric")
    told = [_told(run, metric.source, metric.name) for run in runs]
    return dict(zip(("clean", "attacked", WRAPPER, GRID), told, strict=True)) | {
        "app": row.text,
        "metric": metric.name,
    }


def _told(run: Run, source: str, name: str) -> str:
    """Say what a run shows, in a word."""
    if run.status != "finished":
        return f"{run.status}: {run.error.partition(':')[0][:30]}"
    if run.cell.k and not run.facts.get("replaced"):
        return "not applicable"
    if run.cell.defence != "none" and not run.facts.get("defended"):
        return "not reached"
    value = values(run, source).get(name, math.nan)
    return f"{value:.3f}" if math.isfinite(value) else "NaN"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the apps")
    parser.add_argument("--only", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    print(f"| app | metric | clean | {ATTACK}, f={F} of 10 | Robust, {DEFENCE} | RobustGrid |")
    print("| --- | --- | --- | --- | --- | --- |")
    order = ("app", "metric", "clean", "attacked", WRAPPER, GRID)
    first = read(given.folder / ROWS[0].app)
    with Cells(first, limit=300.0, workers=given.workers) as cells:
        cells.warm(("sklearn", "sklearn.datasets"), [DEFENCE])
        for row in (r for r in ROWS if not given.only or any(o in r.text for o in given.only)):
            told = measure(cells, given.folder, row)
            print("| " + " | ".join(told[key] for key in order) + " |", flush=True)


if __name__ == "__main__":
    main()
