"""The section that shows, client by client and round by round, whose reply counted."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from experiments.report import plots
from experiments.report.contents import Gathered, byzantine
from experiments.report.parts import Panel, Section
from experiments.tables import final
from fedrobust.experiment.schema import Experiment

Row = dict[str, Any]
MOST_CLIENTS, MOST_ROUNDS, MOST_RUNS = 60, 120, 60
# A letter a cell. White is a weight of nothing, blue the darker the more, orange a refused reply.
COLOURS = {
    "0": "#ffffff",
    "1": "#b9d7ec",
    "2": "#4f9bd0",
    "3": "#0b4f8a",
    "c": "#9db4bf",
    "r": "#d55e00",
    "u": "#d8cfe6",
    ".": "#e9edec",
}
LEGEND = (
    ("0", "weight 0: the rule left it out"),
    ("1", "less than half an equal share"),
    ("2", "about an equal share"),
    ("3", "more than 1.5 of it"),
    ("c", "counted (the rule has no weights by client)"),
    ("r", "refused: malformed"),
    ("u", "asked or not: the row does not say"),
    (".", "not asked, or no answer"),
)


def section(gathered: Gathered) -> Section | None:
    """Draw clients x rounds of one run; the page's script shows the others."""
    chosen = runs_shown(gathered)
    if not chosen:
        return None
    drawn = [matrix_of(*gathered.results.runs[i]) for i in chosen]
    first, used = drawn[0], {letter for one in drawn for row in one.cells for letter in row}
    experiment = gathered.experiments[chosen[0]]
    left = len(first.names) < experiment.clients or len(gathered.results.runs) > len(chosen)
    picture = plots.matrix(first, COLOURS, kind="matrix votes")
    return Section(
        "Clients and rounds",
        "Whose reply counted: a row is a client, a column a round; ◆ and red: Byzantine. "
        + ("Not every client, round and run is shown; all are in the rows. " if left else ""),
        panels=(Panel(title(gathered, chosen[0]), picture),),
        legend=tuple((COLOURS[k], words) for k, words in LEGEND if k in used),
        wide=True,
        choices=tuple((title(gathered, i), asdict(m)) for i, m in zip(chosen, drawn, strict=True)),
    )


def runs_shown(gathered: Gathered) -> list[int]:
    """Return the runs in the order of the table: the worst attack on the best defence first."""
    results = gathered.results
    order, names = results.order, results.names
    worth = {name: i for i, name in enumerate(order.defences)}
    sign = 1 if results.headline.best == "max" else -1

    def place(i: int) -> tuple[int, bool, float, int]:
        experiment, rows = results.runs[i]
        value = sign * final(rows, results.headline.column)
        clean = experiment.attack["name"] == "none"
        return worth[names[i]["defence"]], clean, value, experiment.seed

    known = [i for i, (_, rows) in enumerate(results.runs) if any("replies" in r for r in rows)]
    seeds = [e.seed for e in gathered.experiments]
    chosen = [i for i in known if seeds[i] == min(seeds[j] for j in known)]
    return sorted(chosen, key=place)[:MOST_RUNS]


def title(gathered: Gathered, run: int) -> str:
    """Name a run: defence, attack, seed."""
    told = gathered.results.names[run]
    return f"{told['defence']} under {told['attack']}, seed {gathered.experiments[run].seed}"


def matrix_of(experiment: Experiment, rows: list[Row]) -> plots.Matrix:
    """Return a run's clients x rounds; Byzantine clients first, where they stay the same ones."""
    trained = [row for row in rows if row.get("round", 0) > 0 and "replies" in row]
    # Every so many rounds rather than the first ones: the whole run is shown.
    trained = trained[:: max(1, -(-len(trained) // MOST_ROUNDS))]
    told = [row["byzantine"] for row in trained if "byzantine" in row]
    bad = set().union(*told) if told else set(byzantine(experiment))
    clients = sorted(range(experiment.clients), key=lambda c: (c not in bad, c))[:MOST_CLIENTS]
    columns = [_letters(row, experiment.clients) for row in trained]
    return plots.Matrix(
        [str(c) for c in clients],
        [c in bad for c in clients],
        [int(row["round"]) for row in trained],
        ["".join(column[c] for column in columns) for c in clients],
        "round",
    )


def _letters(row: Row, clients: int) -> str:
    """Write one round, a letter a client."""
    weights = row.get("weights")
    if isinstance(weights, list) and len(weights) == clients:
        known = [w if isinstance(w, int | float) and math.isfinite(w) else None for w in weights]
        # Rules' weights add up to different sums: a share is of the mean over those that were
        # heard.
        share = sum(w or 0.0 for w in known) / max(1, sum(w is not None for w in known))
        found = ["." if w is None else _shade(w / share if share else 0.0) for w in known]
    else:
        answered = row["replies"] + len(row.get("rejected") or [])
        found = ["c" if answered == clients else "u"] * clients
    for refused in row.get("rejected") or []:
        client = refused.get("client")
        # Rows are read from files, which anybody may have edited.
        if isinstance(client, int) and 0 <= client < clients:
            found[client] = "r"
    return "".join(found)


def _shade(share: float) -> str:
    """Return the letter of a weight, in equal shares; a share below a thousandth is nothing."""
    if share < 1e-3:
        return "0"
    return "1" if share < 0.5 else "2" if share <= 1.5 else "3"
