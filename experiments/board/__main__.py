"""Make the board: ``python -m experiments.board [--budget full] [--workers 2]``, which resumes.

Rows that are there are kept; each new one is measured by ``fedrobust benchmark``, in a process of
its own; then the README's picture is drawn from all, and the notebook that reads them is run again.
``--picture`` measures nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import notebook_outputs
from experiments.board import picture
from experiments.board.protocol import BUDGETS
from experiments.board.rows import HERE, file_of, read
from fedrobust.spec import parse_spec

FLOWER = str(HERE / "flower_rules.py")
# In the order of worth. Flower's own run at the budget quick alone: beside Bulyan, of which one
# call takes two seconds, they give our numbers, and a call costs three times as much.
DEFENCES = (
    "trimmed_mean", "nnm+trimmed_mean", "nnm+geometric_median", "krum", "nnm+krum", "median",
    "geometric_median", "mean", "centered_clipping:tau=1.0", "nnm+median", "multi_krum",
    "bulyan", "caf", "nnm+multi_krum", "nnm+centered_clipping:tau=1.0",
)  # fmt: skip
FLOWERS = tuple(
    f"{FLOWER}:flower_{name}" for name in ("trimmed_avg", "krum", "median", "multi_krum")
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m experiments.board", description=__doc__)
    parser.add_argument("--budget", choices=list(BUDGETS), default="quick")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/board"))
    parser.add_argument("--picture", action="store_true")
    given = parser.parse_args(arguments)
    for rule in () if given.picture else defences(given.budget):
        if not file_of(name_of(rule), given.budget, HERE).exists():
            _measure(rule, given.budget, given.output, given.workers)
    print(f"written: {picture.write(read())}")
    notebook_outputs.main(["read_the_board"])


def defences(budget: str) -> tuple[str, ...]:
    """Return what belongs on the board at a budget, as ``fedrobust benchmark`` takes it."""
    return DEFENCES if budget == "full" else DEFENCES + FLOWERS


def name_of(rule: str) -> str:
    """Return the name in a row of what ``fedrobust benchmark`` takes."""
    return rule.rpartition(":")[2] if ".py" in rule else str(parse_spec(rule)["name"])


def _measure(rule: str, budget: str, output: Path, workers: int) -> None:
    """Measure one rule, and put its row onto the board."""
    call = [sys.executable, "-m", "experiments.cli", "benchmark", rule, "--budget", budget]
    call += ["--output", str(output), "--workers", str(workers)]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    made = file_of(name_of(rule), budget, output)
    file_of(name_of(rule), budget, HERE).write_bytes(made.read_bytes())


if __name__ == "__main__":
    main()
