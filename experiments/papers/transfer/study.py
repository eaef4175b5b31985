"""Tables, curves and hypotheses of runs that vote under a transfer attack.

``fedrobust run`` writes them beside the runs; ``python -m experiments.papers.transfer.study
FOLDER...`` writes them anew from run folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import tables
from experiments.papers.transfer import hypotheses
from experiments.results import Results, load
from experiments.tables import half_width
from fedrobust.experiment.schema import Experiment

Run = tuple[Experiment, list[dict[str, Any]]]
ATTACKS = {"mi_cwa": "CW", "mi_sam": "SAM", "mi_cse": "CSE", "mi_fgsm": "MI-FGSM"}
SINGLE = hypotheses.SINGLE
UNKNOWN = "paper value not available"


def applies(results: Results) -> bool:
    """Tell whether any of the runs votes, or is compared with votes, on attacked images."""
    return any(e.ensemble.paradigm and e.transfer.attacks for e, _ in results.runs)


def system(experiment: Experiment) -> str:
    """Name a system: its paradigm, and its partition where that is not the uniform one."""
    plan, share = experiment.ensemble, experiment.partition["name"]
    words = plan.paradigm if share == "iid" else f"{plan.paradigm}, {share}"
    if not experiment.byzantine:
        return words
    return f"{words}, {experiment.byzantine} Byzantine ({experiment.attack['name']})"


def frame(results: Results) -> pd.DataFrame:
    """Return one line per run and vote, and one per run for its nodes alone.

    Columns: data, seed, system, n, vote, ca (on all test images in use), matched_ca (on the
    attacked ones), and per attack its ``cond`` and ``all`` robust accuracy: ``mi_cwa cond``.
    """
    return pd.DataFrame(line for run in results.runs for line in _lines(run))


def curves(results: Results) -> pd.DataFrame:
    """Return one line per round in which a central model was measured."""
    lines = []
    for e, rows in results.runs:
        if e.ensemble.paradigm != "central":
            continue
        for row in rows:
            if "votes" in row:
                # One model answers alike whatever the vote.
                cells = next(iter(row["votes"].values()))
                where = {"data": e.data, "seed": e.seed, "round": row["round"]}
                lines.append(where | {"ca": cells["clean"]} | _attacks(cells))
    return pd.DataFrame(lines)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, 95 % half-width and number of seeds of each system, N and vote."""
    keys = ["data", "system", "n", "vote"]
    numbers = [c for c in table.columns if c not in (*keys, "seed")]
    groups = table.groupby(keys, sort=False)
    parts = {"mean": groups[numbers].mean(), "half": groups[numbers].agg(half_width)}
    counted = pd.concat(parts, axis=1)
    counted[("seeds", "")] = groups.size()
    return counted


def markdown(table: pd.DataFrame, data: str) -> str:
    """Write one data set's table with the columns of the paper's: task, N, vote, CA, RA."""
    whole = summary(table[table["data"] == data])
    present = [a for a in ATTACKS if ("mean", f"{a} cond") in whole.columns]
    heads = ["system", "N", "vote", "CA", *(f"RA {ATTACKS[a]}" for a in present)]
    heads += [f"RA {ATTACKS[present[0]]}, all", "seeds", "paper"] if present else ["seeds", "paper"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for (_, name, n, vote), row in whole.iterrows():
        keys = ["ca", *(f"{a} cond" for a in present), *(f"{a} all" for a in present[:1])]
        numbers = [_cell(row["mean", key], row["half", key]) for key in keys]
        cells = [name, n, vote, *numbers, int(row["seeds"].iloc[0]), UNKNOWN]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def report(results: Results) -> str:
    """Return everything as Markdown: per data set the table, the hypotheses, the probes."""
    table, central = frame(results), curves(results)
    parts = []
    for data in dict.fromkeys(table["data"]):
        found = hypotheses.judge(table[table["data"] == data], _of(central, data))
        lines = [f"| {h.name} | {h.verdict} | {h.sentence} |" for h in found]
        parts += [f"## {data}\n", markdown(table, data),
                  "\n| hypothesis | verdict | measured |\n| --- | --- | --- |",
                  "\n".join(lines) + "\n", _probes(results, data)]  # fmt: skip
    return "\n".join(parts)


def write(results: Results, output: Path) -> list[Path]:
    """Write ``transfer.md``, ``transfer.csv`` and the picture of accuracy against robustness."""
    written = [output / name for name in ("transfer.md", "transfer.csv", "transfer.png")]
    written[0].write_text(report(results))
    written[1].write_text(tables.csv(frame(results), index=False))
    figure(results).savefig(written[2], dpi=150)
    return written


def figure(results: Results) -> Any:
    """Draw conditional and unconditional robust accuracy under CW against clean accuracy.

    Every measured round of the central models is a dot of the curve; every system one mark.
    """
    from matplotlib.figure import Figure

    table, central = frame(results), curves(results)
    names = list(dict.fromkeys(table["data"]))
    drawn = Figure(figsize=(10, 4 * len(names)), layout="constrained")
    axes = drawn.subplots(len(names), 2, squeeze=False)
    for row, data in zip(axes, names, strict=True):
        for axis, kind in zip(row, ("cond", "all"), strict=True):
            for _, line in _of(central, data).groupby("seed"):
                ordered = line.sort_values("ca")
                axis.plot(ordered["ca"], ordered[f"mi_cwa {kind}"], ".-", color="0.7")
            _marks(axis, table[(table["data"] == data) & table["vote"].isin(("soft", "-"))], kind)
            axis.set(xlabel="clean accuracy", ylabel=f"robust accuracy under CW, {kind}",
                     title=data)  # fmt: skip
    axes[0, 0].legend(fontsize=7)
    return drawn


def _marks(axis: Any, table: pd.DataFrame, kind: str) -> None:
    for place, ((name, n), part) in enumerate(table.groupby(["system", "n"], sort=False)):
        mark = "os^Dv*PX<>"[place % 10]
        axis.plot(part["matched_ca"], part[f"mi_cwa {kind}"], mark, ms=5, label=f"{name}, {n}")


def _lines(run: Run) -> Iterator[dict[str, Any]]:
    e, rows = run
    last = next((row for row in reversed(rows) if "votes" in row), None)
    if last is None:
        return
    where = {"data": e.data, "seed": e.seed, "system": system(e), "n": e.clients}
    for vote, cells in last["votes"].items():
        clean = last.get("clean", {}).get(vote, last.get("accuracy"))
        yield where | {"vote": vote, "ca": clean, "matched_ca": cells["clean"]} | _attacks(cells)
    members = list(last.get("members", {}).values())
    # With Byzantine members the mean over nodes would be theirs too.
    if len(members) > 1 and not e.byzantine:
        flat = pd.DataFrame([{"matched_ca": m["clean"], **_attacks(m)} for m in members]).mean()
        alone = {**where, "system": f"{SINGLE} of {where['system']}", "vote": "-"}
        yield alone | {"ca": flat["matched_ca"], **flat.to_dict()}


def _attacks(cells: dict[str, Any]) -> dict[str, float]:
    return {
        f"{attack} {kind}": np.nan if value is None else value
        for attack, found in cells.items()
        if attack != "clean"
        for kind, value in found.items()
    }


def _of(central: pd.DataFrame, data: str) -> pd.DataFrame:
    return central[central["data"] == data] if len(central) else central


def _probes(results: Results, data: str) -> str:
    """Write gradient similarity, curvature, and their rank correlation with robust accuracy."""
    lines = []
    for e, rows in results.runs:
        if e.data == data and rows and "probes" in rows[-1]:
            cells = next(iter(rows[-1]["votes"].values()))
            name = {"system": f"{system(e)}, {e.clients}"}
            lines.append({**name, **rows[-1]["probes"], "ra": cells.get("mi_cwa", {}).get("cond")})
    if not lines:
        return ""
    every = pd.DataFrame(lines)
    means = every.groupby("system", sort=False).mean()
    text = ["| system | surrogate-system | surrogate-node | node-node | curvature |",
            "| --- | --- | --- | --- | --- |"]  # fmt: skip
    keys = ("surrogate_system", "surrogate_node", "node_node", "curvature")
    for name, row in means.iterrows():
        text.append(f"| {name} | " + " | ".join(f"{row[key]:.3f}" for key in keys) + " |")
    ranks = (
        # Two points always correlate wholly.
        every[["surrogate_node", "ra"]].corr("spearman").iloc[0, 1] if len(every) > 2 else np.nan
    )
    text.append(f"\nRank correlation of surrogate-node similarity and RA (CW): {ranks:.2f}\n")
    return "\n".join(text)


def _cell(mean: float, half: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")


def main() -> None:
    """Write the report of run folders below the given ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("."))
    given = parser.parse_args()
    paths = [found.parent for folder in given.folders for found in folder.rglob("rounds.jsonl")]
    for path in write(load(sorted(paths)), given.output):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
