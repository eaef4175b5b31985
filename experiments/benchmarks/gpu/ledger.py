"""What was measured, one JSON line each, as it comes: what an interruption leaves is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.plan import Row

DONE = "done"


@dataclass
class Record:
    """One case.

    Attributes
    ----------
    names
        All of its cells, in order; empty before it was begun.
    rows
        Cell -> what it measured, or ``{"error": ...}``.
    status
        How the case ended, in words; "" before.
    """

    names: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    status: str = ""

    @property
    def measured(self) -> list[str]:
        """The cells that need not be measured again."""
        return [name for name, row in self.rows.items()
                if "error" not in row and not row.get("cut")]  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether every cell was measured."""
        return bool(self.names) and set(self.names) <= set(self.measured)


class Ledger:
    """A file of lines; only those of one identity are read, see ``machine.identity``."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity

    def append(self, case: str, **line: Any) -> None:
        """Write one line: ``names=``, ``cell=`` with ``row=``, or ``status=``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"identity": self._identity, "case": case, **line}) + "\n")

    def records(self) -> dict[str, Record]:
        """Return what is known of each case."""
        found: dict[str, Record] = {}
        for line in self._lines():
            record = found.setdefault(line["case"], Record())
            if "names" in line:
                record.names = line["names"]
            if "cell" in line:
                record.rows[line["cell"]] = line["row"]
            record.status = line.get("status", record.status)
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut off while it was written: that cell is measured again
            if line["identity"] == self._identity:
                yield line
