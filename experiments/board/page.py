"""The board's page: for each budget a table that sorts and filters, its picture, its doubts."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from experiments import report
from experiments.board import rows as board_rows
from experiments.board.picture import picture
from experiments.board.protocol import BUDGETS, Budget, Cell
from experiments.board.recommend import KEPT
from experiments.board.rows import in_order, named, percent

HERE = Path(__file__).parent
SCRIPTS = (Path(report.__file__).parent / "sort.js", HERE / "filter.js")
DOUBTS = "<details><summary>What to doubt in it</summary>\n<ul>\n{}</ul></details>"
# By itself: names of its own do not meet those of the site's scripts.
ALONE = "<script>\n(() => {{\n{}\n}})();\n</script>"
Row = dict[str, Any]
# What a reader may ask for: attribute of a cell -> (value, words, whether it is on at first).
FILTERS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "attackers": (
        ("few", "below 1 %", True),
        ("10", "10 %", True),
        ("20", "20 %", True),
        ("40", "40 %", False),  # as in ``worst``: there most rules promise nothing
    ),
    "data": (("iid", "IID", True), ("mixed", "heterogeneous", True)),
    "training": (("gradients", "gradients", True), ("local steps", "local steps", True)),
    "asked": (("all", "all clients asked", True), ("sampled", "some asked", True)),
}


def page(rows: Sequence[Row]) -> Markup:
    """Write the board as HTML, the largest budget first; without a script it is a plain table."""
    parts = [_part(BUDGETS[name], _of(rows, name)) for name in reversed(BUDGETS) if _of(rows, name)]
    # No blank line: Markdown would end the block there.
    scripts = "\n".join(
        line
        for path in SCRIPTS
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    )
    return Markup("\n\n").join([*parts, Markup(ALONE).format(Markup(scripts))])


def _part(budget: Budget, rows: Sequence[Row]) -> Markup:
    doubts = Markup("").join(
        Markup("<li>{}</li>\n").format(line) for line in board_rows.doubts(rows)
    )
    return Markup("\n").join(
        [
            Markup('<h3>Budget {}</h3>\n<div class="board">').format(budget.name),
            _controls(),
            _table(budget, rows),
            Markup("</div>\n<figure>{}</figure>").format(picture(rows)),
            Markup(
                "<details><summary>What to doubt in it</summary>\n<ul>\n{}</ul></details>"
            ).format(doubts),
        ]
    )


def _controls() -> Markup:
    groups = []
    for key, values in FILTERS.items():
        boxes = Markup(" ").join(
            Markup('<label><input type="checkbox" data-of="{}" value="{}"{}> {}</label>').format(
                key, value, Markup(" checked") if on else "", words
            )
            for value, words, on in values
        )
        groups.append(Markup("<span>{}: {}</span>").format(key, boxes))
    return Markup('<p class="filters">{}</p>').format(Markup("<br>\n").join(groups))


def threat(cell: Cell) -> dict[str, str]:
    """Return the values of the filters that a cell belongs to."""
    share = cell.byzantine / cell.federation.settings["clients"]
    return {
        "attackers": "few" if share < 0.01 else f"{100 * share:.0f}",
        "data": cell.federation.heterogeneity,
        "training": cell.federation.training,
        "asked": "sampled" if cell.federation.sampled else "all",
    }


def _table(budget: Budget, rows: Sequence[Row]) -> Markup:
    attacked = [cell for cell in budget.cells if cell.byzantine]
    heads = [
        Markup("<th>rule</th>"),
        Markup('<th title="the lowest of the columns that are shown">worst</th>'),
        Markup("<th>no attack, lowest</th>"),
        *map(_head, attacked),
        *(Markup("<th>{}</th>").format(word) for word in AFTER),
    ]
    lines = Markup("\n").join(_line(row) for row in in_order(rows))
    form = "<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>"
    return Markup(form).format(Markup("").join(heads), lines)


AFTER = (
    "worst class, mixed 4/20",
    "worst client, mixed 4/20",
    "kB up a round, mixed 4/20",
    "ms, 20 x 100,000",
    "reported by its paper",
)


def _head(cell: Cell) -> Markup:
    data = Markup(" ").join(
        Markup('data-{}="{}"').format(key, value) for key, value in threat(cell).items()
    )
    return Markup('<th {} title="{}">{}</th>').format(data, cell.federation.says, cell.name)


def _line(row: Row) -> Markup:
    plain = [c["clean"] for c in row["cells"] if "clean" in c]
    cells = [
        named(row),
        percent(row["score"]["worst"]),
        percent(min(plain, default=None)),
        *(_cell(cell) for cell in row["cells"] if cell["byzantine"]),
        *_after(row),
    ]
    tds = (c if isinstance(c, Markup) else Markup("<td>{}</td>").format(c) for c in cells)
    return Markup("<tr>{}</tr>").format(Markup("").join(tds))


def _cell(cell: Row) -> Markup:
    if "refused" in cell:
        return Markup('<td title="{}">refused</td>').format(cell["refused"])
    if "not_measured" in cell:
        return Markup('<td title="{}">not measured</td>').format(cell["not_measured"])
    half = "" if cell["interval"] is None else f" ± {100 * cell['interval']:.1f}"
    told = (
        f"{cell['winner']}; best published attack: {cell['fixed']},"
        f" {percent(cell['fixed_accuracy'])}; no attack: {percent(cell['clean'])}"
    )
    return Markup('<td title="{}">{}{}</td>').format(told, percent(cell["auto"]), half)


def _after(row: Row) -> list[str]:
    usual = next(c for c in row["cells"] if c["cell"] == "mixed 4/20")
    detail, up = usual.get("auto_detail"), usual.get("bytes_up")
    return [
        percent(detail and detail["worst_class"]),
        percent(detail and detail["worst_client"]),
        "-" if up is None else f"{up / 1000:.0f}",
        f"{row['aggregation_ms']['ms']:g}",
        reported().get(row["rule"], "not available"),
    ]


def reported() -> dict[str, str]:
    """Return what papers say of a rule's accuracy, rule -> words with the setting."""
    return tomllib.loads((HERE / "reported.toml").read_text(encoding="utf-8"))


def verdict(rows: Sequence[Row]) -> str:
    """Write, for each attacked cell of the largest budget, who keeps most and whether it holds.

    A defence holds in a cell where it keeps ``recommend.KEPT`` of the best accuracy that any rule
    has there without an attack.
    """
    budget = next(b for name, b in reversed(BUDGETS.items()) if _of(rows, name))
    lines = [
        "| cell | no attack, best | keeps most | under `auto` | under published attacks | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    held = 0
    attacked = [cell.name for cell in budget.cells if cell.byzantine and not cell.federation.gpu]
    for name in attacked:
        line, holds = _best(name, _of(rows, budget.name))
        lines.append(line)
        held += holds
    told = f"At the budget `{budget.name}` some defence holds in {held} of {len(attacked)} cells:"
    return f"{told}\n\n" + "\n".join(lines) + "\n"


def _of(rows: Sequence[Row], budget: str) -> list[Row]:
    return [row for row in rows if row["budget"] == budget]


def _best(name: str, rows: Sequence[Row]) -> tuple[str, bool]:
    found = [(c, row) for row in in_order(rows) for c in row["cells"] if c["cell"] == name]
    ran = [(c, row) for c, row in found if "auto" in c]
    if not ran:
        return f"| {name} | - | - | - | - | every rule refuses it |", False
    clean, cleanest = max(((c["clean"], named(row)) for c, row in ran), key=lambda one: one[0])
    best, row = max(ran, key=lambda one: one[0]["auto"])
    holds = best["auto"] >= KEPT * clean
    words = (
        f"| {name} | {percent(clean)} ({escape(cleanest)}) | {escape(named(row))} |"
        f" {percent(best['auto'])} ({escape(best['winner'])}) |"
        f" {percent(best['fixed_accuracy'])} ({escape(best['fixed'])}) |"
        f" {'holds' if holds else '**none holds**'} |"
    )
    return words, holds
