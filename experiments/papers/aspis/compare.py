"""Print the paper's accuracies beside ours, and whether the schemes stand in the paper's order.

``python -m experiments.papers.aspis.compare results [--picture curves.png]`` reads the runs of
``alie_q2``, ``alie_q4``, ``reversed_q4`` and ``foe_q4`` below a folder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.results import load
from fedrobust.experiment.load import read
from fedrobust.experiment.schema import Experiment

SURE = 2.0  # points within which two accuracies of the paper, read off a figure, are not ordered


def scheme_of(experiment: Experiment) -> str:
    """Return the paper's name of a defence: its scheme, or its rule where there is none."""
    name = experiment.redundancy.name
    if experiment.redundancy.detection == "paper":
        return f"{name}, published rule"
    return experiment.rule["name"] if name == "none" else name


def measured(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return scheme -> (round, accuracy in %) of the runs in a folder."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for e, rows in load(sorted(path.parent for path in folder.glob("*/rounds.jsonl"))).runs:
        # A run that is not over has no end to compare.
        if rows and rows[-1]["round"] == e.rounds:
            points = [(row["round"], 100 * row["accuracy"]) for row in rows if "accuracy" in row]
            curves[scheme_of(e)] = points
    return curves


def lines(paper: dict[str, Any], curves: dict[str, list[tuple[int, float]]]) -> list[str]:
    """Return one Markdown table and the sentence about the order."""
    own = [name for name in paper if name != "figure"]
    # "aspis, published rule" has no value in the paper: it stands beside that of "aspis".
    variants = [name for name in curves if name not in own and name.partition(",")[0] in own]
    names = [*variants, *own]
    paper = {**paper, **{name: paper[name.partition(",")[0]] for name in variants}}
    table = [f"**{paper['figure']}**", "", "| | paper | measured, end | measured, best |",
             "|---|---|---|---|"]  # fmt: skip
    for name in names:
        if name in curves:
            values = [value for _, value in curves[name]]
            table.append(f"| {name} | {paper[name]} | {values[-1]:.1f} | {max(values):.1f} |")
        else:
            table.append(f"| {name} | {paper[name]} | not measured | |")
    ends = {name: curves[name][-1][1] for name in own if name in curves}
    return [*table, "", orderings(paper, ends), ""]


def orderings(paper: Mapping[str, float], ends: Mapping[str, float]) -> str:
    """Say how many of the paper's orderings, among what was measured, hold."""
    # Both ways round: in one of them the paper's larger value comes first.
    pairs = [(a, b) for a, b in itertools.permutations(ends, 2) if paper[a] - paper[b] > SURE]
    failing = [f"{a} > {b}" for a, b in pairs if ends[a] <= ends[b]]
    told = f"; not: {', '.join(failing)}" if failing else ""
    held = len(pairs) - len(failing)
    return f"Of the paper's {len(pairs)} orderings {held} hold{told}."


def picture(all_curves: dict[str, dict[str, list[tuple[int, float]]]], titles: list[str]) -> Figure:
    """Draw accuracy over rounds, one panel an attack."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(all_curves), sharey=True, squeeze=False)[0]
    for axes, title, curves in zip(panels, titles, all_curves.values(), strict=True):
        for name, points in sorted(curves.items()):
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set(title=title.partition(": ")[2], xlabel="round")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    panels[0].set(ylabel="test accuracy (%)", ylim=(0, 60))
    return figure


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    paper = read(Path(__file__).with_name("paper.toml"))
    curves = {name: measured(options.folder / name) for name in paper}
    for name, values in paper.items():
        print("\n".join(lines(values, curves[name])))
    if options.picture is not None:
        titles = [values["figure"] for values in paper.values()]
        picture(curves, titles).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
