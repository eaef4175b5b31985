"""Compare schemes by the share of files that q Byzantine workers spoil: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas
from matplotlib.figure import Figure

from fedrobust.redundancy import NotApplicable, assign, distortion, gamma_bound
from fedrobust.spec import Spec, split

COLUMNS = ["scheme", "q", "files", "count", "fraction", "weak_count", "weak_fraction", "gamma"]


def table(schemes: Sequence[Spec], *, workers: int, replication: int) -> pandas.DataFrame:
    """Return one row per scheme and q = 1..(K-1)/2.

    ``count`` of ``files`` are wrong in the worst case (``fraction``), ``weak_count`` under the weak
    attack; ``gamma`` is the expansion bound of ByzShield. Missing where a figure does not exist
    (DRACO with too few copies) or cannot be searched for.

    Raises
    ------
    ValueError
        If a scheme does not fit the numbers of workers and copies.
    """
    rows = []
    for spec in schemes:
        files = assign(spec, workers=workers, replication=replication).files
        for q in range(1, (workers - 1) // 2 + 1):
            row = _row(spec, workers=workers, replication=replication, q=q)
            rows.append({"scheme": split(spec)[0], "q": q, "files": files} | row)
    frame = pandas.DataFrame(rows, columns=COLUMNS)
    # "Int64" with a capital has missing values; "int64" would refuse them.
    whole = {"q": "int64", "files": "int64", "count": "Int64", "weak_count": "Int64"}
    return frame.astype(whole)


def _row(spec: Spec, *, workers: int, replication: int, q: int) -> dict[str, object]:
    row: dict[str, object] = {}
    for attack, prefix in (("optimal", ""), ("weak", "weak_")):
        try:
            lost = distortion(spec, workers=workers, replication=replication, q=q, attack=attack)
        except NotApplicable:
            continue
        row |= {f"{prefix}count": lost.count, f"{prefix}fraction": lost.fraction}
    if split(spec)[0].startswith("byzshield"):
        row["gamma"] = gamma_bound(spec, workers=workers, replication=replication, q=q)
    return row


def markdown(frame: pandas.DataFrame) -> str:
    """Return the table as Markdown: a line per q, a column per scheme, "c/f = epsilon" in each."""
    schemes = list(dict.fromkeys(frame["scheme"]))
    cells = {(row["scheme"], row["q"]): _cell(row) for row in frame.to_dict("records")}
    lines = [f"| q | {' | '.join(schemes)} |", f"|{' --- |' * (len(schemes) + 1)}"]
    for q in sorted(set(frame["q"])):
        lines.append(f"| {q} | {' | '.join(cells.get((name, q), '') for name in schemes)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, object]) -> str:
    if pandas.isna(row["count"]):
        return "n/a"
    return f"{row['count']}/{row['files']} = {row['fraction']:.4f}"


def figure(frame: pandas.DataFrame) -> Figure:
    """Draw epsilon over q: a line per scheme, dashed for its weak attack."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        picture = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = picture.subplots()
        for number, (name, rows) in enumerate(frame.groupby("scheme", sort=False)):
            color = f"C{number}"
            axes.plot(rows["q"], rows["fraction"], marker="o", color=color, label=name)
            axes.plot(rows["q"], rows["weak_fraction"], linestyle="--", color=color)
    axes.set_xlabel("Byzantine workers q")
    axes.set_ylabel("share of wrong files")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, title="worst case (weak attack dashed)")
    return picture
