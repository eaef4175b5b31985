"""Print paper / measured / difference for ALIE's tables, from run folders.

``python -m experiments.papers.alie.compare FOLDER...`` reads every run below the folders; a cell
without a run is reported as not measured. The paper reports the maximum over a run.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from experiments.results import load
from fedrobust.experiment.load import read

Measured = dict[str, list[float]]


def best(rows: list[dict[str, Any]], key: str) -> float | None:
    """Return the maximum of one metric over a run, in %; None where it was never measured."""
    values = [row[key] for row in rows if key in row]
    return 100 * max(values) if values else None


def measured(folders: list[Path], key: str) -> Measured:
    """Collect each cell's maxima over its seeds."""
    cells: Measured = {}
    paths = [found.parent for folder in folders for found in folder.rglob("rounds.jsonl")]
    for experiment, rows in load(sorted(paths)).runs:
        value = best(rows, key)
        if value is not None:
            cells.setdefault(experiment.name, []).append(value)
    return cells


def lines(paper: dict[str, float], cells: Measured) -> list[str]:
    """Return the Markdown rows of one table."""
    result = [
        "| attack / defence | paper | measured | difference | seeds |",
        "|---|---|---|---|---|",
    ]
    for name, value in paper.items():
        if name not in cells:
            result.append(f"| {name} | {value} | not measured | | 0 |")
            continue
        mean, count = statistics.fmean(cells[name]), len(cells[name])
        spread = f" ± {statistics.stdev(cells[name]):.1f}" if count > 1 else ""
        result.append(f"| {name} | {value} | {mean:.1f}{spread} | {mean - value:+.1f} | {count} |")
    return result


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    paper = read(Path(__file__).with_name("paper.toml"))
    tables = (
        ("Table 1, CIFAR-10: maximal accuracy (%)", paper["table1"], "accuracy"),
        ("Table 2, CIFAR-10: benign accuracy (%)", paper["table2"]["benign"], "accuracy"),
        ("Table 2, CIFAR-10: backdoor accuracy (%)", paper["table2"]["backdoor"], "attack_success"),
    )
    for title, values, key in tables:
        print(f"\n{title}\n")
        print("\n".join(lines(values, measured(folders, key))))


if __name__ == "__main__":
    main()
