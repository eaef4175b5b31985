"""One case in a process of its own: ``python -m experiments.benchmarks.gpu.work CASE ...``.

Prints one JSON line with the names of all cells, then one for each cell that was measured, or that
raised. What else a cell prints goes to the error stream.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch

from experiments.benchmarks.gpu.plan import CASES, Cell, Row, Scale

MARGIN = 2.0  # seconds that a cell leaves to write its line before the process is ended
LEAST = 1.0  # seconds that a cell takes in any case


def work(name: str, scale: Scale, *, skip: Sequence[str], lines: TextIO) -> None:
    """Measure the cells of a case that are not done, within ``scale.seconds``."""
    end = time.monotonic() + scale.seconds - MARGIN
    cells = list(CASES[name].cells(scale))
    tell(lines, names=[cell for cell, _ in cells])
    for cell, call in cells:
        left = end - time.monotonic()
        if cell not in skip and left > 0:
            row = measured((cell, call), replace(scale, seconds=max(LEAST, left)))
            tell(lines, cell=cell, row=row)


def measured(cell: Cell, scale: Scale) -> Row:
    """Measure one cell; what it raises is its row, and the next one begins with free memory."""
    try:
        return cell[1](scale)
    except Exception as error:  # a missing kernel, too little memory: other cells may do
        first = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first}"[:300]}
    finally:
        gc.collect()
        if torch.device(scale.device).type == "cuda":
            torch.cuda.empty_cache()


def tell(lines: TextIO, **line: object) -> None:
    """Write one line."""
    lines.write(json.dumps(line) + "\n")
    lines.flush()


def main() -> None:
    """Measure the case that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--pretend", action="store_true")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--skip", nargs="*", default=[], help="cells that are done")
    given = parser.parse_args()
    torch.set_num_threads(1)
    scale = Scale(given.device, given.pretend, given.data_root, given.folder, given.seconds)
    # The lines have the output for themselves, whatever a library prints.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.closing(lines):
        work(given.case, scale, skip=given.skip, lines=lines)


if __name__ == "__main__":
    main()
