"""How good the app's model is: which number says so, and what a fall of it means."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.audit.cell import Run
from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import suggest

UP, DOWN = "max", "min"
SERVER, CLIENTS, ASKED, DISTANCE = "server", "clients", "asked", "distance"
SOURCES = {
    SERVER: "the server's own evaluation",
    CLIENTS: "evaluations of the honest nodes, weighted by their examples",
    ASKED: "the honest nodes, asked by the audit to evaluate the final model",
    DISTANCE: "distance of the final model from the clean one, in spreads of clean seeds",
}
WORDS = {
    UP: ("acc", "accuracy", "auc", "auroc", "f1", "dice", "iou", "miou", "map", "r2", "bleu",
         "precision", "recall"),
    DOWN: ("loss", "logloss", "err", "error", "mae", "mse", "rmse", "ppl", "perplexity", "wer",
           "nll"),
}  # fmt: skip
SPREADS = 3.0  # a fall within this many standard deviations of clean seeds is noise


@dataclass(frozen=True)
class Metric:
    """The number that is judged.

    Attributes
    ----------
    direction
        "max": more is better; "min": less is.
    """

    source: str
    name: str
    direction: str

    @property
    def text(self) -> str:
        """The metric in a line."""
        better = "more" if self.direction == UP else "less"
        return f"{self.name} ({better} is better; {SOURCES[self.source]})"


@dataclass(frozen=True)
class Baseline:
    """The clean runs, in the metric's own units.

    Attributes
    ----------
    spread
        Standard deviation over the seeds.
    before
        The value before training; None where nobody measured it.
    tolerated
        The fall from which on a run counts as broken.
    """

    mean: float
    spread: float
    before: float | None
    tolerated: float


def direction(name: str) -> str | None:
    """Tell by its name whether more or less of a metric is better; None if the name does not."""
    tokens = [t for t in re.split(r"[^a-z0-9]+", name.lower()) if t]
    for way in (UP, DOWN):
        if any(token in WORDS[way] for token in tokens):
            return way
    return None


def values(run: Run, source: str) -> dict[str, float]:
    """Return the last numbers of one source."""
    facts = run.facts
    if source == SERVER:
        rounds = [told for told in facts.get("server", []) if told["round"] > 0]
        return {k: v for k, v in rounds[-1].items() if k != "round"} if rounds else {}
    if source == CLIENTS:
        return dict(facts["evaluations"][-1]) if facts.get("evaluations") else {}
    return dict(facts.get("asked", {}))


def before(run: Run, metric: Metric) -> float | None:
    """Return the metric before training; None where nobody measured it."""
    if metric.source == SERVER:
        told = [t for t in run.facts.get("server", []) if t["round"] == 0]
        return told[0].get(metric.name) if told else None
    if metric.source in (CLIENTS, ASKED):
        value = run.facts.get("asked_first", {}).get(metric.name)
        return float(value) if value is not None else None
    return None


def choose(clean: Sequence[Run], wanted: str | None) -> tuple[Metric, list[str]]:
    """Choose the number to judge by, and name those whose direction nobody knows.

    Parameters
    ----------
    wanted
        ``"NAME"`` or ``"NAME:min"`` or ``"NAME:max"``; None is the first source that has a metric
        of known direction, one where more is better before others.

    Raises
    ------
    ConfigError
        If the wanted metric is not there, or its direction neither told nor known.
    """
    tables = {source: values(clean[0], source) for source in (SERVER, CLIENTS, ASKED)}
    if wanted is not None:
        return _wanted(tables, wanted), []
    unknown = []
    for source, table in tables.items():
        names = [name for name, value in sorted(table.items()) if math.isfinite(value)]
        for way in (UP, DOWN):
            for name in names:
                if direction(name) == way:
                    return Metric(source, name, way), []
        unknown += [name for name in names if direction(name) is None]
    return Metric(DISTANCE, "distance", DOWN), sorted(set(unknown))


def _wanted(tables: Mapping[str, Mapping[str, float]], wanted: str) -> Metric:
    name, colon, way = wanted.rpartition(":")
    if not colon or way not in (UP, DOWN):
        name, way = wanted, ""
    sources = [source for source, table in tables.items() if name in table]
    if not sources:
        known = sorted({key for table in tables.values() for key in table})
        told = suggest(name, known) if known else "the app reports none"
        raise ConfigError([f"no metric {name!r} was seen in the clean run; {told}"])
    found = way or direction(name)
    if found is None:
        raise ConfigError([
            f"is more or less of {name!r} better? Say --metric {name}:max or --metric {name}:min"
        ])  # fmt: skip
    return Metric(sources[0], name, found)


class Judge:
    """Numbers of runs, and how far they are below the clean ones.

    Parameters
    ----------
    metric
        What is judged.
    clean
        Clean runs with different seeds.
    arrays
        Their final arrays, in the same order, for the distance.
    tolerance
        A fall that is accepted: of a number in 0..1 as it is, of others as a share.
    """

    def __init__(
        self,
        metric: Metric,
        clean: Sequence[Run],
        arrays: Sequence[Mapping[str, np.ndarray]],
        tolerance: float,
    ) -> None:
        self.metric = metric
        self._centre: np.ndarray | None = None
        self._unit = 0.0
        if metric.source == DISTANCE:
            self._measure(arrays)
            # In units of the clean seeds' own distances, which ``value`` divides by.
            self.baseline = Baseline(0.0, 1.0, None, SPREADS)
            return
        found = [value for run in clean if (value := self.value(run, {})) is not None]
        mean = statistics.fmean(found)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        scale = 1.0 if metric.direction == UP and abs(mean) <= 1 else max(1.0, abs(mean))
        tolerated = max(tolerance * scale, SPREADS * spread)
        self.baseline = Baseline(mean, spread, before(clean[0], metric), tolerated)

    def _measure(self, arrays: Sequence[Mapping[str, np.ndarray]]) -> None:
        rows = [flat for held in arrays if (flat := _flat(held)) is not None]
        if len(rows) > 1 and len({len(row) for row in rows}) == 1:
            self._centre = np.mean(rows, axis=0)
            distances = [float(np.linalg.norm(row - self._centre)) for row in rows]
            self._unit = math.sqrt(statistics.fmean(d * d for d in distances))

    def value(self, run: Run, arrays: Mapping[str, np.ndarray]) -> float | None:
        """Return a run's number; None where it has none."""
        if self.metric.source != DISTANCE:
            return values(run, self.metric.source).get(self.metric.name)
        row = _flat(arrays)
        if row is None or self._centre is None or len(row) != len(self._centre) or not self._unit:
            return None
        return float(np.linalg.norm(row - self._centre)) / self._unit

    def fall(self, value: float) -> float:
        """Return how much worse than clean a value is; negative if it is better."""
        sign = 1 if self.metric.direction == UP else -1
        return sign * (self.baseline.mean - value)

    def learned(self) -> bool | None:
        """Whether the clean run got better than before training; None where nobody knows."""
        if self.baseline.before is None:
            return None
        return self.fall(self.baseline.before) > max(SPREADS * self.baseline.spread, 1e-6)


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    parts = [a.reshape(-1).astype(np.float64) for a in arrays.values() if a.dtype.kind == "f"]
    return np.concatenate(parts) if parts else None
