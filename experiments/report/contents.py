"""What a report is made of: frames read off the runs, no drawing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedrobust import data
from fedrobust.attacks import threat_model
from fedrobust.data import DataError
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.environment import environment

# Columns of a row that have a place of their own; every other number is drawn over the rounds.
KNOWN = {"run", "attack", "defence", "seed", "round", "accuracy", "loss", "replies", "train_loss",
         "bypass", "kappa"}  # fmt: skip
COSTS = ("seconds", "line_seconds", "times", "bytes")  # beginnings of what a round costs


@dataclass(frozen=True)
class Gathered:
    """Everything a report shows.

    Attributes
    ----------
    folders
        Where each run is; only its name where it is in memory.
    results
        ``experiments.results.Results``; not imported here, since it draws its report by this.
    environments
        Each distinct environment.json.
    """

    folders: tuple[Path, ...]
    results: Any
    environments: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, results: Any) -> Gathered:
        """Gather results that were computed in this process."""
        folders = tuple(Path(experiment.run_id) for experiment, _ in results.runs)
        return cls(folders, results, (environment(),))

    @property
    def experiments(self) -> list[Experiment]:
        """The resolved experiments, in order."""
        return [experiment for experiment, _ in self.results.runs]


def widen(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers inside nested values columns of their own: ``bytes_by_stage/commit``."""
    extra: dict[str, list[float]] = {}
    for column in (c for c in frame.columns if frame[c].dtype == object):
        nested = [v if isinstance(v, dict) else {} for v in frame[column]]
        # By type: to ``isinstance`` a flag is a number.
        keys = dict.fromkeys(k for v in nested for k, x in v.items() if type(x) in (int, float))
        for key in keys:
            extra[f"{column}/{key}"] = [float(v.get(key, math.nan)) for v in nested]
    return frame.assign(**extra)


def measures(frame: pd.DataFrame) -> list[str]:
    """Name the numeric columns that have no section of their own: robust accuracy and the like."""
    found = [c for c in _numeric(frame) if c not in KNOWN and not c.startswith((*COSTS, "impact"))]
    # Without those of NaN alone: another mode's columns, and nothing to draw.
    return [column for column in found if frame[column].nunique() > 0]


def _numeric(frame: pd.DataFrame) -> list[str]:
    return [str(column) for column in frame.select_dtypes("number").columns]


def attackers(frame: pd.DataFrame) -> pd.DataFrame:
    """Say, per defence and attack, what the attackers got: means over rounds and seeds.

    ``bypass`` is their share of the weight (1 = their share of the clients gets through whole),
    ``deviation`` the distance of the aggregate from the honest mean in honest spreads, ``cosine``
    its direction.
    """
    if "impact" not in frame:
        return pd.DataFrame()
    # A copy: columns are added, and the report's other sections read the same frame.
    told = frame.dropna(subset=["impact"]).copy()
    for key in ("deviation", "cosine"):
        told[key] = [impact.get(key) for impact in told["impact"]]
    told["bypass"] = told["bypass"] if "bypass" in told else float("nan")
    columns = ["bypass", "deviation", "cosine"]
    return told.groupby(["defence", "attack"], sort=False)[columns].mean()


def refusals(results: Results) -> pd.DataFrame:
    """Count, per defence and attack, the replies that lost their vote and the rounds kept."""
    lines = []
    for (_, rows), names in zip(results.runs, results.names, strict=True):
        reasons = Counter(r["reason"] for row in rows for r in row.get("rejected", []))
        kept = Counter(row["kept"] for row in rows if "kept" in row)
        lines += [{**names, "what": "reply refused", "why": why, "times": count}
                  for why, count in reasons.most_common(5)]  # fmt: skip
        lines += [{**names, "what": "model kept", "why": why, "times": count}
                  for why, count in kept.most_common(3)]  # fmt: skip
    table = pd.DataFrame(lines, columns=["defence", "attack", "what", "why", "times"])
    keys = ["defence", "attack", "what", "why"]
    return table.groupby(keys, sort=False)["times"].sum().reset_index()


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Give, per defence, the median and slowest seconds of a round and the means of other costs."""
    trained = frame[frame["round"] > 0]
    groups = trained.groupby("defence", sort=False)
    table = (
        groups["seconds"]
        .agg(median="median", slowest="max")
        .rename(columns={"median": "seconds a round (median)", "slowest": "slowest round"})
    )
    for column in _numeric(trained):
        if column.startswith(COSTS) and column != "seconds" and trained[column].notna().any():
            table[column.replace("_", " ")] = groups[column].mean()
    return table


def shares(experiment: Experiment, data_root: str | None) -> pd.DataFrame | str:
    """Return images per client and label, or the reason why they cannot be counted here."""
    try:
        dataset = data.load(experiment.data, root=data_root)
        dataset = data.set_aside(dataset, experiment.server.validation, seed=experiment.seed)
        cut = data.cut(
            dataset, experiment.partition, clients=experiment.clients, seed=experiment.seed
        )
    except (DataError, OSError) as error:
        return str(error)
    labels = dataset.train_labels
    if not dataset.holds_classes:
        return pd.DataFrame({"examples": [len(share) for share in cut]}).rename_axis("client")
    classes = int(labels.max()) + 1
    counts = [labels[share].bincount(minlength=classes).tolist() for share in cut]
    return pd.DataFrame(counts, index=pd.RangeIndex(len(cut), name="client"))


def byzantine(experiment: Experiment) -> tuple[int, ...]:
    """Return the Byzantine clients of the first round."""
    return threat_model.members(experiment, round=1)
