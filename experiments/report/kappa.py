"""The report's section on robustness coefficients: measured in each round, and published."""

from __future__ import annotations

import pandas as pd

from experiments.coefficients import compared, marks
from experiments.report.contents import Gathered
from experiments.report.parts import Section, csv_link, table_of
from experiments.report.sections import panels


def section(gathered: Gathered, frame: pd.DataFrame) -> Section | None:
    """Draw each defence's measured kappa over the rounds, and the published one as a line."""
    found = compared(frame, gathered.experiments)
    if found.empty:
        return None
    known = frame.dropna(subset=["kappa"])
    return Section(
        "Robustness coefficient",
        "Kappa of a round: squared distance of the aggregate from the honest mean over the honest "
        "variance. The dotted line is what is published for the defence at its n and f; a dash: "
        "nothing is. A round above it has more than f Byzantine clients, or a rule with a fault.",
        panels=panels(gathered, known, "kappa", log=True, marks=marks(found)),
        lines=True,
        table=table_of(found.reset_index().set_index("defence")),
        csv=csv_link(found),
        minor=True,
    )
