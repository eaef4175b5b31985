"""The section that names the winner of ``attack = "auto"``, and what may be wrong with a number."""

from __future__ import annotations

from markupsafe import Markup

from experiments import worst_case
from experiments.report.load import Gathered
from experiments.report.parts import Section, table_of
from fedrobust.experiment import auto


def worst_cases(gathered: Gathered) -> Section | None:
    """Name the winner of ``auto`` against each defence, and every flag."""
    found = gathered.results.worst_cases
    weak = dict.fromkeys(filter(None, map(auto.weakness, gathered.experiments)))
    said = [*weak, *(f"{one.defence}: {flag}" for one in found for flag in one.flags)]
    if not found and not said:
        return None
    table = table_of(worst_case.words(found).reset_index()) if found else Markup("")
    # ``format`` of a Markup escapes what it puts in: flags hold names of users' own.
    listed = Markup("").join(Markup("<li>{}</li>").format(line) for line in said)
    runs, seconds = sum(one.runs for one in found), sum(one.seconds for one in found)
    lead = "What may be wrong with these numbers."
    if found:
        lead = (
            "Each member of attack = 'auto' is a whole run of its own; the winner is the one that"
            f" leaves least. {runs} runs, {seconds:.0f} seconds of rounds in all. Flags below it"
            " say why a number may be wrong."
        )
    return Section("Worst case", lead, table=table + Markup("<ul>{}</ul>").format(listed))
