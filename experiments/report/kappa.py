"""The report's section on robustness coefficients: measured in each round, and published."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from experiments.coefficients import compared, marks
from experiments.report import figures
from experiments.report.parts import Panel, Section, csv_link, table_of
from fedrobust.experiment.schema import Experiment


def section(experiments: Sequence[Experiment], frame: pd.DataFrame) -> Section | None:
    """Draw each defence's measured kappa over the rounds, and the published one as a line."""
    found = compared(frame, experiments)
    if found.empty:
        return None
    defences = list(dict.fromkeys(frame["defence"]))
    known = frame.dropna(subset=["kappa"])
    panels = tuple(
        Panel(
            f"attack: {attack}",
            Markup(
                figures.over_rounds(
                    part, "kappa", defences, f"kappa-{attack}", log=True, marks=marks(found)
                )
            ),
        )
        for attack, part in known.groupby("attack", sort=False)
    )
    return Section(
        "Robustness coefficient",
        "Kappa of a round: squared distance of the aggregate from the honest mean over the honest "
        "variance. The dotted line is what is published for the defence at its n and f; a dash: "
        "nothing is. A round above it has more than f Byzantine clients, or a rule with a fault.",
        panels=panels,
        legend=tuple((d, *figures.style(i)) for i, d in enumerate(defences)),
        table=table_of(found.reset_index().set_index("defence")),
        csv=csv_link(found),
    )
