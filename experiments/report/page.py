"""Fill the page: sections of sentences, figures and the tables behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import tomli_w
from markupsafe import Markup

from experiments.report import figures, kappa
from experiments.report.heat import heat_table, scale
from experiments.report.load import (
    Gathered,
    attackers,
    byzantine,
    costs,
    gather,
    measures,
    refusals,
    shares,
    widen,
)
from experiments.report.parts import Panel, Section, csv_link, table_of
from experiments.report.worst import worst_cases
from fedrobust.experiment.schema import Experiment
from fedrobust.version import __version__

TEMPLATE = Path(__file__).with_name("page.html")


def write(folders: Sequence[Path], path: Path, *, data_root: str | None = None) -> Path:
    """Write the report of some run folders to ``path`` and return it."""
    path.write_text(build(folders, data_root=data_root), encoding="utf-8")
    return path


def build(folders: Sequence[Path], *, data_root: str | None = None) -> str:
    """Return one self-contained page: no script, no font, no picture from elsewhere.

    Raises
    ------
    ConfigError
        If no folder holds a finished round.
    """
    gathered = gather(folders)
    frame = widen(gathered.results.frame)
    sections = [
        worst_cases(gathered),
        _final(gathered),
        *_curves(gathered, frame),
        _attackers(frame),
        kappa.section(gathered.experiments, frame),
        _refusals(gathered),
        _shares(gathered, data_root),
        _costs(gathered, frame),
    ]
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=_title(gathered),
        verdict=_verdict(gathered),
        facts=_facts(gathered),
        sections=[section for section in sections if section is not None],
        configuration=_configuration(gathered.experiments),
        environments=[_lines(e) for e in gathered.environments],
        runs=[
            (str(f.name), e.name, e.seed)
            for f, e in zip(gathered.folders, gathered.experiments, strict=True)
        ],
        version=__version__,
        commit=(gathered.environments[0].get("commit") or "") if gathered.environments else "",
    )


def _title(gathered: Gathered) -> str:
    runs = len(gathered.experiments)
    return gathered.experiments[0].name if runs == 1 else f"{runs} runs: defence against attack"


def _verdict(gathered: Gathered) -> str:
    """Answer the question in one sentence."""
    table, shown = gathered.results.table(), gathered.results.headline

    def written(value: float) -> str:
        return f"{value:.1%}" if shown.is_share else f"{value:.4g}"

    if len(gathered.experiments) == 1:
        words = shown.column.replace("_", " ")
        return f"Final test {words} {written(gathered.results.score)}."
    scores = table["worst"].dropna()
    if scores.empty:
        return "No run has been evaluated yet."
    order = scores if shown.best == "max" else -scores
    best, cells = order.idxmax(), table.drop(columns="worst")
    attack = (cells if shown.best == "max" else -cells).loc[best].idxmin()
    words = f"Best worst case: {best} keeps {written(scores[best])}"
    words += f" under its worst attack, {attack}."
    if len(scores) > 1:
        last = order.idxmin()
        words += f" The weakest is {last}: {written(scores[last])}."
    return words


def _facts(gathered: Gathered) -> list[tuple[str, str]]:
    def values(what: str, of: Any) -> tuple[str, str]:
        return what, ", ".join(dict.fromkeys(str(of(e)) for e in gathered.experiments))

    return [
        values("data", lambda e: e.data),
        values("model", lambda e: e.model),
        values("clients", lambda e: e.clients),
        values("Byzantine", lambda e: e.byzantine),
        values("partition", lambda e: e.partition["name"]),
        values("rounds", lambda e: e.rounds),
        values("seeds", lambda e: e.seed),
    ]


def _final(gathered: Gathered) -> Section:
    means, halves = gathered.results.table(), gathered.results.interval()
    seeds = len({e.seed for e in gathered.experiments})
    several = f", mean over {seeds} seeds with the 95 % interval" if seeds > 1 else ""
    shown = gathered.results.headline
    words, unit = shown.column.replace("_", " "), " in %" if shown.is_share else ""
    heat = heat_table(means, halves, **scale(shown, means))
    return Section(
        f"Final {words}",
        f"Test {words} after the last round{unit}{several}. The score of a defence is its worst "
        "attack, right of the line.",
        table=Markup(f"<div class='wide'>{heat}</div>"),
        csv=csv_link(means),
    )


def _curves(gathered: Gathered, frame: pd.DataFrame) -> list[Section]:
    """Draw accuracy over rounds, then every other measure that the rows hold."""
    first = [column for column in ("accuracy",) if column in frame] or ["loss"]
    return [_over_rounds(frame, column) for column in (*first, *measures(frame))]


def _over_rounds(frame: pd.DataFrame, column: str) -> Section:
    words = column.replace("_", " ")
    known = frame.dropna(subset=[column])
    defences = list(dict.fromkeys(frame["defence"]))
    panels = tuple(
        Panel(
            f"attack: {attack}",
            Markup(figures.over_rounds(part, column, defences, f"{column}-{attack}")),
        )
        for attack, part in known.groupby("attack", sort=False)
    )
    table = known.pivot_table(
        index="round", columns=["attack", "defence"], values=column, sort=False
    )
    table.columns = [f"{attack} / {defence}" for attack, defence in table.columns]
    return Section(
        f"{words.capitalize()} over rounds",
        "A line is the mean over the seeds, its band reaches from the lowest to the highest.",
        panels=panels,
        legend=tuple((d, *figures.style(i)) for i, d in enumerate(defences)),
        behind=table_of(table.round(4)),
        csv=csv_link(table),
    )


def _attackers(frame: pd.DataFrame) -> Section | None:
    found = attackers(frame)
    if found.empty:
        return None
    bypass, deviation = (
        found[column].unstack("attack").reindex(
            index=list(dict.fromkeys(found.index.get_level_values(0))),
            columns=list(dict.fromkeys(found.index.get_level_values(1))),
        )
        for column in ("bypass", "deviation")
    )  # fmt: skip
    far = float(deviation.max().max())
    table = (
        "<h3>Bypass</h3><p>The attackers' share of the weight: 0, all rejected; their share of the "
        "clients, all let through. A dash: the rule takes values apart from their senders.</p>"
        f"<div class='wide'>{heat_table(bypass, low=0, high=1, unit=1, digits=2)}</div>"
        "<h3>Deviation</h3><p>How far the aggregate is from the honest mean, in honest spreads."
        f"</p><div class='wide'>{heat_table(deviation, low=0, high=far, unit=1, digits=2)}</div>"
    )
    return Section(
        "What the attackers got",
        "Means over all rounds and seeds in which the attackers' replies counted.",
        table=Markup(table),
        behind=table_of(found.round(4).reset_index().set_index("defence")),
        csv=csv_link(found),
    )


def _refusals(gathered: Gathered) -> Section | None:
    found = refusals(gathered.results)
    if found.empty:
        return None
    return Section(
        "Replies that lost their vote",
        "A malformed reply costs its sender the vote of that round; with too few votes the model "
        "is kept.",
        table=table_of(found.set_index("defence")),
        csv=csv_link(found),
    )


def _shares(gathered: Gathered, data_root: str | None) -> Section:
    experiment = gathered.experiments[0]
    title, name = "Who holds which data", experiment.partition["name"]
    counts = shares(experiment, data_root)
    if isinstance(counts, str):
        return Section(title, f"Not drawn, the data set is not at hand: {counts}")
    bad = byzantine(experiment)
    if not bad:
        bad = next((b for e in gathered.experiments if (b := byzantine(e))), ())
    shown = min(len(counts), figures.MOST_CLIENTS)
    lead = f"Partition {name}, seed {experiment.seed}"
    if len({(str(e.partition), e.clients, e.seed) for e in gathered.experiments}) > 1:
        lead += " (that of the first run)"
    lead += f", {shown} of {len(counts)} clients." if shown < len(counts) else "."
    return Section(
        title,
        lead + (" Red numbers: Byzantine clients." if bad else ""),
        panels=(Panel("", Markup(figures.labels_per_client(counts, bad, "labels"))),),
        behind=table_of(counts.rename(columns=lambda label: f"label {label}")),
        csv=csv_link(counts),
    )


def _costs(gathered: Gathered, frame: pd.DataFrame) -> Section:
    table = costs(frame)
    defences = list(table.index)
    return Section(
        "Time and bytes a round",
        "Wall time of whole rounds on the machine named below, training and evaluation included; "
        "bytes are the numbers that travel, without the envelope.",
        panels=(Panel("", Markup(figures.seconds_per_round(frame, defences, "seconds"))),),
        table=table_of(table.round(4)),
        csv=csv_link(table),
    )


def _configuration(experiments: list[Experiment]) -> str:
    """Return as TOML the settings that all runs share; what differs is in the table of runs."""
    first, *others = [e.to_dict() for e in experiments]
    shared = {k: v for k, v in first.items() if all(o[k] == v for o in others)}
    return tomli_w.dumps(shared)


def _lines(environment: dict[str, Any]) -> list[tuple[str, str]]:
    flat = {k: v for k, v in environment.items() if not isinstance(v, dict)}
    for nested in environment.values():
        flat |= nested if isinstance(nested, dict) else {}
    return [(str(k), str(v)) for k, v in flat.items() if v is not None]
