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

CAUSES = "figure13_causes"
FILES = {"aspis_plus": 35, "detox": 5, "none": 15}  # K = 15
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


def figure(asked: dict[str, Any], found: Ends) -> Iterator[str]:
    """Yield the lines of one figure's table and the sentence about the order."""
    values: dict[str, list[float]] = {}
    for e, end in found:
        attack = asked.get("attack", e.attack["name"])
        if e.byzantine == asked["byzantine"] and e.attack["name"] == attack:
            values.setdefault(scheme_and_rule(e), []).append(end)
    paper = asked["paper"]
    yield from (f"**{asked['title']}**", "")
    if not values:
        yield from ("Not measured.", "")
        return
    yield from ("| | paper | measured, by seed | mean | spread |", "|---|---|---|---|---|")
    for name in dict.fromkeys([*paper, *values]):
        yield f"| {name} | {paper.get(name, '-')} | {_cell(values.get(name, []))} |"
    means = {n: statistics.mean(v) for n, v in values.items() if n in paper}
    yield from ("", orderings(paper, means), "") if len(means) > 1 else ("",)


def _cell(values: list[float]) -> str:
    if not values:
        return "not measured | - | -"
    told = ", ".join(f"{value:.1f}" for value in values)
    spread = f"{max(values) - min(values):.1f}" if len(values) > 1 else "one seed"
    return f"{told} | {statistics.mean(values):.1f} | {spread}"


def causes(found: Ends) -> Iterator[str]:
    """Yield the table of the runs that change one thing in Fig. 13 each."""
    yield from ("**Fig. 13, one change a run, seed 1**", "")
    yield "| scheme, rule | Byzantine | placement | samples a file | steps | rate | z | end |"
    yield "|---|---|---|---|---|---|---|---|"
    for e, end in sorted(found, key=lambda pair: -pair[1]):
        if e.seed > 1 or e.redundancy.name == "none":
            continue
        files = FILES[e.redundancy.name]
        adversary = e.redundancy.adversary["name"]
        drawn = "placed" if adversary == "detox_worst" else "drawn" if e.byzantine else "-"
        z = e.attack["z"] if e.byzantine else "-"
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
    for asked in read(Path(__file__).with_name("figures.toml"))["figure"]:
        found = [pair for name in asked["files"] for pair in ends(folder / name)]
        print("\n".join(figure(asked, found)))
    print("\n".join(causes(ends(folder / "figure13") + ends(folder / CAUSES))))


if __name__ == "__main__":
    main()
