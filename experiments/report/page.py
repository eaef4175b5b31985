"""Fill the page: its sections in their order, its script, what it may do."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import tomli_w
from markupsafe import Markup

from experiments.report import against, kappa, plots, sections, told, votes
from experiments.report.contents import Gathered, widen
from experiments.report.parts import Section
from fedrobust.experiment.schema import Experiment
from fedrobust.version import __version__

HERE = Path(__file__).parent
SCRIPTS = ("sort.js", "page.js")  # the board's page sorts by the first one too


def render(gathered: Gathered, *, data_root: str | None = None) -> str:
    """Return one self-contained page: nothing of it comes from elsewhere.

    Its one script is named by its digest in the page's permissions, so that no other one can run,
    whatever a client may have written into a row.
    """
    order = gathered.results.order
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    shown = [section for section in contents(gathered, data_root) if section is not None]
    # Escaped, since names and reasons come from clients; strict, since a misspelt name would be
    # blank.
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string((HERE / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=_title(gathered),
        verdict=_verdict(gathered),
        doubts=told.doubts(gathered),
        facts=_facts(gathered),
        main=[section for section in shown if not section.minor],
        minor=[section for section in shown if section.minor],
        defences=[(name, *plots.style(i)) for i, name in enumerate(order.defences)],
        attacks=order.attacks,
        choices=_data({s.title: s.choices for s in shown if s.choices}),
        colours=_data(votes.COLOURS),
        configuration=_configuration(gathered.experiments),
        environments=[_lines(e) for e in gathered.environments],
        runs=[
            (str(f.name), e.name, e.seed)
            for f, e in zip(gathered.folders, gathered.experiments, strict=True)
        ],
        version=__version__,
        commit=(gathered.environments[0].get("commit") or "") if gathered.environments else "",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def contents(gathered: Gathered, data_root: str | None) -> list[Section | None]:
    """Return the sections in their order; None for one that has nothing to show."""
    frame = widen(gathered.results.frame)
    return [
        told.worst_cases(gathered),
        sections.final(gathered),
        told.names(gathered),
        *sections.curves(gathered, frame),
        against.against_f(gathered),
        against.against_heterogeneity(gathered),
        against.cost_against_worst(gathered, frame),
        sections.attackers_got(gathered, frame),
        votes.section(gathered),
        kappa.section(gathered, frame),
        sections.replies_refused(gathered),
        sections.who_holds_what(gathered, data_root),
        sections.time_and_bytes(frame, gathered.results.order.defences),
    ]


def _data(value: Any) -> Markup:
    """Write JSON that no text in it can end: it stands inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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
    best, last, cells = scores.index[0], scores.index[-1], table.drop(columns="worst")
    attack = (cells if shown.best == "max" else -cells).loc[best].idxmin()
    words = f"Best worst case: {best} keeps {written(scores[best])}"
    words += f" under its worst attack, {attack}."
    if len(scores) > 1:
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
        values("partition", lambda e: " ".join(map(str, e.partition.values()))),
        values("rounds", lambda e: e.rounds),
        ("seeds", ", ".join(map(str, sorted({e.seed for e in gathered.experiments})))),
    ]


def _configuration(experiments: list[Experiment]) -> str:
    """Return as TOML the settings that all runs share; what differs is in the table of runs."""
    first, *others = [e.to_dict() for e in experiments]
    # Some runs lack a key that others have: it is left out where it is empty, or by mode.
    shared = {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}
    return tomli_w.dumps(shared)


def _lines(environment: dict[str, Any]) -> list[tuple[str, str]]:
    flat = {k: v for k, v in environment.items() if not isinstance(v, dict)}
    for nested in environment.values():
        flat |= nested if isinstance(nested, dict) else {}
    return [(str(k), str(v)) for k, v in flat.items() if v is not None]
