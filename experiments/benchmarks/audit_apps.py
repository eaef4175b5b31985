"""What audits of small apps find and cost: quality, wall seconds and CPU seconds.

``python -m experiments.benchmarks.audit_apps [--apps NAME ...] [--audits full]`` prints its rows as
Markdown: the number that it is judged by, clean, attacked, and with a rule at both seams; then what
an audit says of it, and how long that takes. CPU seconds are those of all its processes; wall
seconds depend on what else the machine does, so its load stands beside them.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

from experiments.audit.application import read, tree_hash
from experiments.audit.card import picture
from experiments.audit.conduct import audit
from experiments.audit.processes import Cells
from experiments.audit.table import ATTACK, DEFENCE, F, Row, measure

AUDITS = ("quick", "full")
APPS = ("fedavg", "batchnorm", "client_evaluation", "scaffold", "own_loop", "old_api")
FOLDER = Path(__file__).parents[2] / "tests" / "apps"
COLUMNS = ("app", "metric", "clean", "attacked", "wrapper", "grid", "audit", "finds", "best",
           "cells", "seconds", "CPU s", "load")  # fmt: skip


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def audited(folder: Path, kind: str, pictures: Path | None = None) -> dict[str, str]:
    """Audit one app; say what it finds and what it costs. Its card may be drawn.

    Raises
    ------
    RuntimeError
        If the app's folder is not as before.
    """
    before, start, used = tree_hash(folder), time.monotonic(), cpu_seconds()
    made = audit(folder, quick=kind == "quick")
    seconds, cpu = time.monotonic() - start, cpu_seconds() - used
    if tree_hash(folder) != before:
        raise RuntimeError(f"the audit changed {folder}")
    if pictures is not None:
        (pictures / f"{folder.name}-{kind}.svg").write_text(picture(made))
    best = made.best
    return {
        "audit": kind,
        "finds": f"{made.verdict}: {made.summary.sentence}",
        "best": "none" if best is None else f"{best.name} saves {best.saved} of {best.tried}",
        "cells": str(len(made.cells)),
        "seconds": f"{seconds:.0f}",
        "CPU s": f"{cpu:.0f}",
        "load": f"{os.getloadavg()[0]:.0f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apps", nargs="*", default=APPS, help="folders of tests/apps")
    parser.add_argument("--audits", nargs="*", choices=AUDITS, default=AUDITS)
    parser.add_argument("--pictures", type=Path, help="a folder for the cards")
    given = parser.parse_args()
    print(f"{ATTACK}, f={F} of 10; {DEFENCE}; {os.cpu_count()} cores", end="\n\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    for name in given.apps:
        with Cells(read(FOLDER / name), limit=600.0) as cells:
            told: dict[str, Any] = measure(cells, FOLDER, Row(name))
        # Only when the row's own cells have ended: their CPU seconds would count as the audit's.
        for kind in given.audits:
            row = told | audited(FOLDER / name, kind, given.pictures)
            print("| " + " | ".join(row[column] for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
