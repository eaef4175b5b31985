"""Is any rule slower than in an older checkout? CPU seconds, both versions in turns.

``git worktree add ../older COMMIT``, ``python -m experiments.benchmarks.rules_since ../older``;
about three minutes on one core. Each version runs in a process of its own on the same matrix; for
each rule that both know they take turns, and the least CPU time of each counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks.floors import ROOT
from experiments.benchmarks.measuring import Row, environment_of, show

SLOWER = 1.25  # beyond this factor a rule is called slower: two runs of one version differ by less
# What each process runs: it answers a rule's name with CPU seconds, or with the error.
WORKER = """
import json, sys, time
import torch
from experiments.benchmarks import rules
torch.set_num_threads(1)
n, d = map(int, sys.argv[1].split("x"))
updates = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
known = [*rules.RULES, *rules.PREAGGREGATORS]
print(json.dumps(known), flush=True)
for line in sys.stdin:
    try:
        call = rules.ours(line.strip(), updates)
        call()  # what is compiled or drawn once is not counted
        taken = []
        for _ in range(3):
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
        print(json.dumps(min(taken)), flush=True)
    except Exception as error:
        print(json.dumps(str(error)), flush=True)
"""


class Version:
    """A checkout whose rules are timed in a process of its own."""

    def __init__(self, folder: Path, size: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, size],
            cwd=folder, env=environment_of(folder), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.names: list[str] = self._answer()

    def seconds(self, name: str) -> Any:
        """Return the CPU seconds of one call of a rule, or what went wrong as text."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a version's process ended: run its experiments.benchmarks.rules")
        return json.loads(line)


def compared(older: Path, size: str, *, turns: int, only: list[str] | None = None) -> Iterator[Row]:
    """Yield one line per rule that both versions know."""
    before, now = Version(older, size), Version(ROOT, size)
    n = int(size.split("x")[0])
    try:
        for name in only or [name for name in now.names if name in before.names]:
            if name in ("mda", "smea") and n > 20:
                continue
            taken = [(before.seconds(name), now.seconds(name)) for _ in range(turns)]
            if wrong := [one for pair in taken for one in pair if isinstance(one, str)]:
                yield {"rule": name, "size": size, "error": wrong[0]}
                continue
            least, newest = (min(column) for column in zip(*taken, strict=True))
            yield {"rule": name, "size": size, "before": least, "now": newest,
                   "ratio": newest / least, "slower": newest > SLOWER * least}  # fmt: skip
    finally:
        before.close()
        now.close()


def main() -> None:
    """Print one line per rule and size; exit with 1 where a rule became slower."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("older", type=Path, help="a checkout of the version before")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--sizes", nargs="*", default=["20x20000", "100x20000"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rules", nargs="*", help="only these")
    options = parser.parse_args()
    rows = [
        row
        for size in options.sizes
        for row in compared(options.older.resolve(), size, turns=options.turns, only=options.rules)
    ]
    show(rows, _text, as_json=options.json)
    raise SystemExit(1 if any(row.get("slower") for row in rows) else 0)


def _text(row: Row) -> str:
    if "error" in row:
        return f"{row['rule']:30} {row['size']:12} not compared: {row['error'][:60]}"
    return (
        f"{row['rule']:30} {row['size']:12} {1000 * row['before']:9.2f} ms"
        f" -> {1000 * row['now']:9.2f} ms  {row['ratio']:6.2f}{'  slower' * row['slower']}"
    )


if __name__ == "__main__":
    main()
