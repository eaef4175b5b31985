"""DAT's tables: every row is a run, recorded like any other, printed beside its reference.

``python -m experiments.papers.dat.tables toy --seeds 2`` runs what is not finished and prints the
table; ``fashionmnist`` likewise. Runs may be shared out: finished ones are not run again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.papers.dat.cases import TABLES, Case
from experiments.simulation import resolve, run_one
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

HERE = Path(__file__).parent


def experiments(table: str, case: Case, seeds: int) -> list[Experiment]:
    """Return a case's runs, one a seed from 0."""
    base = HERE / f"{table}.toml"
    return [run for s in range(seeds) for run in resolve(base, {**case.changes, "seed": s})]


def rows_of(experiment: Experiment, output: Path, data_root: str | None) -> list[dict[str, Any]]:
    """Return a run's rows, from its folder where it is finished."""
    folder = RunFolder(output, experiment)
    if not folder.finished:
        run_one(experiment, data_root=data_root, folder=folder)
    return folder.rows()


def cells(runs: Iterable[list[dict[str, Any]]]) -> Mapping[str, str]:
    """Return clean and robust accuracy of each seed in %, seconds and bytes of a round."""
    listed = list(runs)
    last = [rows[-1] for rows in listed]
    # Round 0 trains nothing.
    seconds = statistics.median(row["seconds"] for rows in listed for row in rows[1:])
    return {
        "clean %": ", ".join(f"{100 * row['accuracy']:.1f}" for row in last),
        "robust %": ", ".join(f"{100 * row['robust_accuracy']:.1f}" for row in last),
        "Auto-PGD %": _percent(last, "apgd_accuracy"),
        "squares %": _percent(last, "square_accuracy"),
        "alarms": "; ".join(alarm for row in last for alarm in row.get("alarms", [])) or "none",
        "s / round": f"{seconds:.2f}",
        "kB up": f"{last[0]['bytes_up'] / 1e3:.0f}",
        "kB down": f"{last[0]['bytes_down'] / 1e3:.0f}",
    }


def _percent(rows: list[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{100 * row[key]:.1f}" if key in row else "-" for row in rows)


def main() -> None:
    """Run a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="only rows whose label holds this text")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--data-root", default=None)
    given = parser.parse_args()
    heads = ["clean %", "robust %", "Auto-PGD %", "squares %", "alarms", "s / round", "kB up",
             "kB down"]  # fmt: skip
    print("| run | " + " | ".join([*heads, "reference clean / robust %"]) + " |")
    print("|" + "---|" * (len(heads) + 2))
    for case in TABLES[given.table]:
        if given.only not in case.label:
            continue
        runs = experiments(given.table, case, given.seeds)
        found = cells(rows_of(run, given.output / given.table, given.data_root) for run in runs)
        words = [case.label, *(found[head] for head in heads), case.reference]
        print("| " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    main()
