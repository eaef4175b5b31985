"""What a reader must know of the runs: doubts about the numbers, and what each name stands for."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import listing, notices, worst_case
from experiments.labels import spelt
from experiments.outcomes import stuck
from experiments.report.contents import Gathered
from experiments.report.parts import Section, table_of
from fedrobust.attacks import threat_model

KINDS = {
    "attack": ("attacks", "training attacks", "data attacks", "faults", "redundancy adversaries"),
    "defence": ("rules", "pre-aggregators", "redundancy schemes", "votes"),
}


def doubts(gathered: Gathered) -> list[str]:
    """Return every sentence on why a number may say less than it seems to."""
    flagged = [
        f"{one.defence}: {flag}" for one in gathered.results.worst_cases for flag in one.flags
    ]
    stopped = [line for e, rows in gathered.results.runs if (line := stuck(e, rows))]
    known = [
        *stopped,
        *notices.before(gathered.experiments),
        *notices.after(gathered.results),
        *flagged,
    ]
    return list(dict.fromkeys(known))


def worst_cases(gathered: Gathered) -> Section | None:
    """Name the winner of ``attack = "auto"`` against each defence."""
    found = gathered.results.worst_cases
    if not found:
        return None
    runs, seconds = sum(one.runs for one in found), sum(one.seconds for one in found)
    lead = (
        "Each member of attack = 'auto' is a whole run of its own; the winner is the one that"
        f" leaves least. {runs} runs, {seconds:.0f} seconds of rounds in all."
    )
    return Section("Worst case", lead, table=table_of(worst_case.words(found)))


def names(gathered: Gathered) -> Section:
    """Say what each attack and defence is, with all settings."""
    said = {kind: _said(kinds) for kind, kinds in KINDS.items()}
    specs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for told, experiment in zip(gathered.results.names, gathered.experiments, strict=True):
        specs.setdefault(("attack", told["attack"]), [experiment.attack])
        specs.setdefault(("defence", told["defence"]), experiment.stages)
    order = gathered.results.order
    keys = [("attack", a) for a in order.attacks] + [("defence", d) for d in order.defences]
    table = pd.DataFrame(
        {
            "kind": key[0],
            "name": key[1],
            "settings": spelt(*specs[key]),
            "what it does": " ".join(said[key[0]].get(spec["name"], "") for spec in specs[key]),
        }
        for key in keys
    )
    return Section(
        "Attacks and defences",
        "Every setting that the runs had, defaults included where they were resolved.",
        table=table_of(table.set_index("kind")),
    )


def _said(kinds: tuple[str, ...]) -> dict[str, str]:
    tables = listing.tables()
    told = {e["name"]: e["what"] for kind in kinds for e in tables[kind]}
    return told | {threat_model.NONE: "Nobody attacks."}
