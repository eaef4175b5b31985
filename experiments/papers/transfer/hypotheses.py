"""The orderings that a reproduction reports, each judged on the runs at hand.

H1 to H8 are what is published of Andreina et al., AAAI 2025, and of its code, as orderings; H9 and
H10 are ours: how much of the gain is left at equal clean accuracy, and whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.tables import half_width

HOLDS, FAILS, OPEN = "holds", "does not hold", "not measured"
NOISE = "not decided"  # the interval holds 0
TIE = 0.02  # one adjacent tie within 2 points is allowed
LARGEST_DROP = 0.08  # of clean accuracy, from one node to seven
CW = "mi_cwa cond"
SINGLE = "single node"


@dataclass(frozen=True)
class Verdict:
    """One hypothesis: its name, whether it holds on these runs, and the numbers."""

    name: str
    verdict: str
    sentence: str


class Missing(LookupError):
    """A system that was not run."""


def judge(table: pd.DataFrame, central: pd.DataFrame) -> list[Verdict]:
    """Judge every hypothesis on one data set.

    Parameters
    ----------
    table
        ``study.frame`` of one data set.
    central
        ``study.curves`` of it: the central models along their training.
    """
    rules: dict[str, Callable[[pd.DataFrame, pd.DataFrame], tuple[bool | None, str]]] = {
        "H1 RA under CW rises with N": _h1,
        "H2 the gain of N = 7 is clearly positive": _h2,
        "H3 CA falls mildly with N": _h3,
        "H4 own values >= copied values (RA)": _h4,
        "H5 diversity of kinds matters less than N": _h5,
        "H6 SAM, CSE and the other votes order alike": _h6,
        "H7 a full-data ensemble gains clearly less": _h7,
        "H8 Dirichlet shares keep the order, CA lower": _h8,
        "H9 a gain is left at matched CA": _h9,
        "H10 at matched CA the vote adds to what a node has": _h10,
    }
    found = []
    for name, rule in rules.items():
        try:
            holds, sentence = rule(table, central)
            verdict = NOISE if holds is None else HOLDS if holds else FAILS
            found.append(Verdict(name, verdict, sentence))
        except Missing as what:
            found.append(Verdict(name, OPEN, f"no run of {what}"))
    return found


def cells(table: pd.DataFrame, system: str, n: int, column: str, vote: str = "soft") -> pd.Series:
    """Return one value a seed of a system.

    Raises
    ------
    Missing
        If it was not run, or not measured so.
    """
    # A node by itself does not vote.
    vote = "-" if system.startswith(SINGLE) else vote
    chosen = table[(table["system"] == system) & (table["n"] == n) & (table["vote"] == vote)]
    if not len(chosen):
        raise Missing(f"{system}, N = {n}")
    if column not in chosen:
        raise Missing(f"{system}, N = {n}, that measured {column!r}")
    return chosen.set_index("seed")[column]


def by_n(table: pd.DataFrame, column: str, vote: str = "soft") -> dict[int, pd.Series]:
    """Return N -> values: the central model, then the plain distributed systems."""
    systems = {1: "central"} | dict.fromkeys((3, 5, 7), "same")
    return {n: cells(table, name, n, column, vote) for n, name in systems.items()}


def rises(values: list[float]) -> bool:
    """Tell whether the values rise; one adjacent step may be a tie within 2 points."""
    steps = [float(step) for step in np.diff(values)]
    ties = [step for step in steps if step <= 0]
    return not ties or (len(ties) == 1 and ties[0] >= -TIE)


def matched(central: pd.DataFrame, seed: int, ca: float, column: str) -> float:
    """Return the central model's value at a clean accuracy, by linear interpolation.

    NaN if it was never measured at such an accuracy or the accuracy is outside the curve.
    """
    # Sorted by accuracy: ``np.interp`` takes points in order, and returns nonsense for others.
    line = central[central["seed"] == seed].dropna(subset=[column]).sort_values("ca")
    if not len(line) or not line["ca"].min() <= ca <= line["ca"].max():
        return float("nan")
    return float(np.interp(ca, line["ca"], line[column]))


def _h1(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    means = {n: float(v.mean()) for n, v in by_n(table, CW).items()}
    return rises(list(means.values())), _sequence(means)


def _h2(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    gain = cells(table, "same", 7, CW) - cells(table, "central", 1, CW)
    half = half_width(gain.tolist())
    # With one seed there is no interval: then the sign has to do.
    positive = gain.mean() > (0 if np.isnan(half) else half)
    at_least = "at least" if gain.mean() >= 0.1 else "below"
    return bool(positive), f"{_points(gain)}; {at_least} 10 points"


def _h3(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    means = {n: float(v.mean()) for n, v in by_n(table, "ca").items()}
    fall = means[1] - means[7]
    return bool(0 <= fall <= LARGEST_DROP), f"{_sequence(means)}; falls by {100 * fall:.1f} points"


def _h4(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    gain = cells(table, "tuned", 7, CW) - cells(table, "same", 7, CW)
    ca = cells(table, "tuned", 7, "ca") - cells(table, "same", 7, "ca")
    return bool(gain.mean() >= 0), f"RA {_points(gain)}, CA {_points(ca)}"


def _h5(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    kinds = cells(table, "full", 7, CW) - cells(table, "tuned", 7, CW)
    count = cells(table, "same", 7, CW) - cells(table, "central", 1, CW)
    words = f"kinds {_points(kinds)} over own values, N = 7 over 1 {_points(count)}"
    return bool(abs(kinds.mean()) < abs(count.mean())), words


def _h6(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    words, fine = [], True
    for label, column, vote in (
        ("SAM", "mi_sam cond", "soft"),
        ("CSE", "mi_cse cond", "soft"),
        ("CW by hard vote", CW, "hard"),
        ("CW by weighted vote", CW, "weighted"),
    ):
        means = {n: float(v.mean()) for n, v in by_n(table, column, vote).items()}
        fine &= rises(list(means.values()))
        words.append(f"{label} {_sequence(means)}")
    return fine, "; ".join(words)


def _h7(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    base = cells(table, "central", 1, CW)
    whole, disjoint = (cells(table, s, 3, CW) - base for s in ("full_data", "same"))
    words = f"N = 3: full data {_points(whole)}, disjoint {_points(disjoint)}"
    return bool(whole.mean() <= disjoint.mean() / 2), words + _fedavg(table, central)


def _h8(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool, str]:
    skewed = "same, dirichlet"
    gain = cells(table, skewed, 7, CW) - cells(table, "central", 1, CW)
    ca = cells(table, skewed, 7, "ca") - cells(table, "same", 7, "ca")
    fine = gain.mean() > 0 and ca.mean() <= 0
    return bool(fine), f"RA over central {_points(gain)}, CA against uniform {_points(ca)}"


def _h9(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool | None, str]:
    raw = cells(table, "same", 7, CW) - cells(table, "central", 1, CW)
    equal = _matched_gain(table, central, "same", 7)
    if equal.isna().all():
        raise Missing("a central model at the accuracy of N = 7")
    single = cells(table, "single node of same", 7, CW)
    words = f"raw {_points(raw)}, at matched CA {_points(equal)}"
    words += f"; a node alone has {100 * single.mean():.1f}"
    return beyond(equal), f"{words}, the vote {100 * cells(table, 'same', 7, CW).mean():.1f}"


def _h10(table: pd.DataFrame, central: pd.DataFrame) -> tuple[bool | None, str]:
    """Split the gain of N = 7: less data a node, then the vote, each against the central model."""
    vote, node = (_matched_gain(table, central, s, 7) for s in ("same", f"{SINGLE} of same"))
    added = vote - node
    if added.isna().all():
        raise Missing("a central model at the accuracy of a node and of its vote")
    return beyond(added), f"a node {_points(node)}, the vote adds {_points(added)}"


def beyond(values: pd.Series) -> bool | None:
    """Tell whether a mean is above 0; None where its interval holds 0. One seed has no interval."""
    mean, half = values.mean(), half_width(values.tolist())
    if not np.isnan(half) and abs(mean) <= half:
        return None
    return bool(mean > 0)


def _fedavg(table: pd.DataFrame, central: pd.DataFrame) -> str:
    try:
        equal = _matched_gain(table, central, "fedavg", 7)
    except Missing:
        return ""
    ca = cells(table, "fedavg", 7, "ca").mean()
    return f"; FedAvg (CA {100 * ca:.1f}) over central at matched CA {_points(equal)}"


def _matched_gain(table: pd.DataFrame, central: pd.DataFrame, system: str, n: int) -> pd.Series:
    found, ca = cells(table, system, n, CW), cells(table, system, n, "matched_ca")
    return pd.Series({s: found[s] - matched(central, s, ca[s], CW) for s in found.index})


def _sequence(means: dict[int, float]) -> str:
    return ", ".join(f"N={n} {100 * mean:.1f}" for n, mean in means.items())


def _points(values: pd.Series) -> str:
    half = half_width(values.tolist())
    if values.isna().all():
        return "not comparable"
    spread = "" if np.isnan(half) else f" ± {100 * half:.1f}"
    some = f" ({values.count()} of {len(values)} seeds)" if values.isna().any() else ""
    return f"{100 * values.mean():+.1f}{spread} points{some}"
