"""The tests marked ``gpu``, in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.benchmarks.gpu.plan import Cell, Row, Scale

ROOT = Path(__file__).parents[3]
MARK = "mark.gpu"
COUNTS = ("passed", "failed", "skipped", "errors")


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield one cell a file that holds such tests."""
    for file in files():
        yield file.stem, partial(tested, file)


def files() -> list[Path]:
    """Return the files with tests that are marked: others need not even be importable."""
    return sorted(p for p in (ROOT / "tests").rglob("test_*.py") if MARK in p.read_text())


def tested(file: Path, scale: Scale) -> Row:
    """Run a file's marked tests; return how many passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
               "-p", "no:xdist", str(file)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = counted(done.stdout)
    if not any(counts.values()):
        raise RuntimeError(f"{file.name}: {(done.stdout + done.stderr).strip()[-400:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return counts | {"which": "; ".join(failed)[:400]}


def counted(output: str) -> dict[str, int]:
    """Read pytest's last line."""
    last = (output.strip().splitlines() or [""])[-1]
    return {what: int((re.search(rf"(\d+) {what[:5]}", last) or [0, 0])[1]) for what in COUNTS}
