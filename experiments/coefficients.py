"""A run's robustness coefficient: what is published for its defence, beside what its rounds had."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from fedrobust import aggregation
from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy.rounds import operands
from fedrobust.simulation.sampled import implied_f
from fedrobust.simulation.stragglers import sample_size


def vectors(experiment: Experiment) -> int:
    """Return how many vectors the rule gets in a round: files, or the clients that are asked."""
    sampled = experiment.mode == "federated"
    return sample_size(experiment) if sampled else operands(experiment)


def published(experiment: Experiment) -> float | None:
    """Return the defence's published kappa at its n and f; None where there is none.

    f is the one that the rule was told, or would be told if it took one. What is published counts
    updates, so that there is none for weighted clients.
    """
    if not experiment.rule or experiment.weights["name"] != "equal":
        return None
    n = vectors(experiment)
    f = experiment.rule.get("f", implied_f(vars(experiment)))
    return aggregation.coefficient(experiment.rule, n=n, f=min(f, n), pre=experiment.pre)


def compared(frame: pd.DataFrame, experiments: Sequence[Experiment]) -> pd.DataFrame:
    """Return, per defence and attack, the published kappa and the mean and worst measured one.

    Parameters
    ----------
    frame
        ``Results.frame`` of these experiments: one line a run and round.
    """
    if "kappa" not in frame:
        return pd.DataFrame()
    known = {e.run_id: published(e) for e in experiments}
    told = frame.dropna(subset=["kappa"])
    # As floats: where nothing is published the column has NaN, not None.
    told = told.assign(published=[known[run] for run in told["run"]]).astype({"published": float})
    groups = told.groupby(["defence", "attack"], sort=False)
    table = groups["kappa"].agg(mean="mean", worst="max")
    table.insert(0, "published", groups["published"].first())
    return table


def marks(table: pd.DataFrame) -> dict[str, float]:
    """Return defence -> its published kappa, where there is one that is finite."""
    found = table["published"].groupby(level="defence", sort=False).first()
    return {str(name): value for name, value in found.items() if math.isfinite(value)}
