"""The results page: machine, versions, and a table a case, made anew after each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.ledger import Record
from experiments.benchmarks.gpu.plan import CASES, Row

COMMAND = "make gpu"
NOT_YET = "not measured"


def write(path: Path, facts: Mapping[str, str], records: Mapping[str, Record]) -> None:
    """Write the page, whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text("\n".join(lines(facts, records)) + "\n")
    beside.replace(path)


def lines(facts: Mapping[str, str], records: Mapping[str, Record]) -> Iterator[str]:
    """Yield the page's lines."""
    yield f"# On a GPU: {facts['GPU']}"
    yield ""
    yield f"Written by `{COMMAND}` (`python -m experiments.benchmarks.gpu`), cell by cell."
    yield "Seconds are wall seconds with the device's queue emptied; `ratio` is over the reference,"
    yield "bytes are what a case adds to the device's memory."
    yield ""
    yield from table([{"": key, "is": value} for key, value in facts.items() if value])
    for case in CASES.values():
        record = records.get(case.name, Record())
        yield ""
        yield f"## {case.name}"
        yield ""
        yield f"{case.what[0].upper()}{case.what[1:]}. {sentence(record)}"
        if record.rows:
            yield ""
            yield from table([{"cell": name} | row for name, row in record.rows.items()])


def sentence(record: Record) -> str:
    """Say how a case stands."""
    left = [name for name in record.names if name not in record.measured]
    if record.finished:
        return "All measured."
    told = record.status or NOT_YET
    return f"{told[0].upper()}{told[1:]}." + (f" Not measured: {', '.join(left)}." if left else "")


def table(rows: list[Row]) -> Iterator[str]:
    """Yield a Markdown table of all columns that the rows have."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield f"| {' | '.join(key.replace('_', ' ') for key in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(shown(row.get(key)) for key in columns)} |"


def shown(value: Any) -> str:
    """Write a value into a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
