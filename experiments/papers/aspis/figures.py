"""Print the campaign's accuracies beside the paper's, figure by figure, from the runs' own rows.

``python -m experiments.papers.aspis.figures FOLDER`` reads what ``campaign`` wrote; a run that is
not over is no result. Cells are the end of each seed, in order.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.papers.aspis.compare import orderings
from experiments.results import load
from fedrobust.experiment.load import read
from fedrobust.experiment.schema import Experiment

CAUSES = {"Fig. 13": ("figure13", "figure13_causes"), "Fig. 14": ("figure14", "figure14_causes")}
FILES = {  # of a scheme at so many workers
    ("aspis_plus", 15): 35, ("detox", 15): 5, ("none", 15): 15,
    ("aspis_plus", 25): 100, ("detox", 25): 5, ("none", 25): 25,
}  # fmt: skip
Ends = list[tuple[Experiment, float]]


def ends(folder: Path) -> Ends:
    """Return each finished run below a folder and its last accuracy in %, seed by seed."""
    found = []
    for e, rows in load(sorted(path.parent for path in folder.glob("*/rounds.jsonl"))).runs:
        if rows and rows[-1]["round"] == e.rounds:
            found.append((e, 100 * rows[-1]["accuracy"]))
    return sorted(found, key=lambda pair: pair[0].seed)


def scheme_and_rule(e: Experiment) -> str:
    """Name a defence as ``figures.toml`` does."""
    return f"{e.redundancy.name}, {e.rule['name']}"


def measured(asked: dict[str, Any], found: Ends) -> dict[str, list[float]]:
    """Return the last accuracies of one figure's defences in %, seed by seed."""
    values: dict[str, list[float]] = {}
    for e, end in found:
        attack = asked.get("attack", e.attack["name"])
        if e.byzantine == asked["byzantine"] and e.attack["name"] == attack:
            values.setdefault(scheme_and_rule(e), []).append(end)
    return values


def figure(title: str, paper: dict[str, float], values: dict[str, list[float]]) -> Iterator[str]:
    """Yield the rows of one figure."""
    for name in dict.fromkeys([*paper, *values]):
        yield f"| {title} | {name} | {paper.get(name, '-')} | {_cell(values.get(name, []))} |"
        title = ""


def order(title: str, paper: dict[str, float], values: dict[str, list[float]]) -> str:
    """Say which of the paper's orders hold in the means."""
    means = {n: statistics.mean(v) for n, v in values.items() if n in paper}
    return f"- {title}: {orderings(paper, means)}"


def _cell(values: list[float]) -> str:
    told = ", ".join(f"{value:.1f}" for value in values)
    return f"{told} | {statistics.mean(values):.1f}" if values else "not measured | -"


def causes(title: str, found: Ends) -> Iterator[str]:
    """Yield the table of the runs that change one thing in a figure each."""
    yield from ("", f"**{title}, one change a run, seed 1**", "")
    yield "| scheme, rule | Byzantine | placement | samples a file | steps | rate | z | end |"
    yield "|---|---|---|---|---|---|---|---|"
    for e, end in sorted(found, key=lambda pair: -pair[1]):
        if e.seed > 1 or e.redundancy.name == "none":
            continue
        files = FILES[e.redundancy.name, e.clients]
        adversary = e.redundancy.adversary["name"]
        drawn = "placed" if adversary == "detox_worst" else "drawn" if e.byzantine else "-"
        z = e.attack.get("z", "-") if e.byzantine else "-"
        cells = (
            scheme_and_rule(e), e.byzantine, drawn, e.redundancy.batch // files, e.rounds,
            e.server.lr, z, f"{end:.1f}",
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows: list[str] = []
    orders: list[str] = []
    for asked in read(Path(__file__).with_name("figures.toml"))["figure"]:
        found = [pair for name in asked["files"] for pair in ends(folder / name)]
        one = (asked["title"], asked["paper"], measured(asked, found))
        rows += figure(*one)
        orders.append(order(*one))
    heads = ("| figure | defence | paper | measured, by seed | mean |", "|---|---|---|---|---|")
    print("\n".join([*heads, *rows, "", *orders]))
    for title, folders in CAUSES.items():
        print("\n".join(causes(title, [pair for name in folders for pair in ends(folder / name)])))


if __name__ == "__main__":
    main()
