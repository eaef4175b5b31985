"""How much of what a second stage counts the attackers own, by whom and what they distort."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedrobust.attacks import threat_model
from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy import ADVERSARIES, NotApplicable, rounds
from fedrobust.redundancy.counted import counted
from fedrobust.seeds import generator


@dataclass(frozen=True, order=True)
class Reach:
    """What the attackers own in the first round.

    The order is that of harm: where the plain mean is taken, one wrong file moves it without bound.

    Attributes
    ----------
    plain
        Whether they own a part of a plain mean.
    share
        Of the vectors that the rule aggregates, those with a wrong file; of a mean's files, the
        wrong ones.
    """

    plain: bool
    share: float

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % of {'a plain mean' if self.plain else 'what is counted'}"


def reach(experiment: Experiment, adversary: str = "") -> Reach:
    """Return what attackers own of the second stage of an experiment with a scheme.

    Parameters
    ----------
    adversary
        A name of ``ADVERSARIES``; "" takes the experiment's own.

    Raises
    ------
    ValueError
        For an adversary that does not go with the scheme.
    """
    scheme = experiment.redundancy
    if adversary:
        scheme = replace(scheme, adversary={"name": adversary})
    e = replace(experiment, redundancy=scheme)
    files, workers = rounds.base(scheme), threat_model.members(e, round=1)
    distorted = rounds.corruption(e, workers, files)
    draws = generator(e.seed, "reach")
    found = counted(e, files, distorted, server_round=1, draws=draws)
    if not found.wrong:
        return Reach(False, 0.0)
    if found.plain:
        return Reach(True, len(found.wrong) / found.kept)
    return Reach(False, len(found.owned) / len(found.groups))


def farther(experiment: Experiment) -> str:
    """Say which adversary would own more than the experiment's own does; empty where none would."""
    if not experiment.redundancy.name:
        return ""
    own, others = reach(experiment), {}
    for name in ADVERSARIES:
        try:
            others[name] = reach(experiment, name)
        except (ValueError, NotApplicable):  # made for another scheme
            continue
    best = max(others, key=others.__getitem__)
    if others[best] <= own:
        return ""
    name = rounds.adversary_spec(experiment.redundancy)["name"]
    return (
        f"adversary {name} owns {own}, {best} would own {others[best]}:"
        f" try redundancy.adversary = '{best}'"
    )


def nothing(experiment: Experiment) -> str:
    """Say that the votes leave the attackers nothing; empty where they own something."""
    if not experiment.redundancy.name or reach(experiment).share:
        return ""
    return (
        "in the first round no file that the server keeps is wrong: whatever the attackers send"
        " has no say"
    )
