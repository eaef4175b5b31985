"""What ``fedrobust check`` says of the clients that a run asks: how often they exceed its f."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.cli_output import defence
from fedrobust.aggregation import tolerated
from fedrobust.aggregation.cohorts import exceeds, smallest_cohort, smallest_f
from fedrobust.experiment.schema import Experiment
from fedrobust.simulation.stragglers import sample_size


def sentences(experiments: Iterable[Experiment], *, delta: float) -> list[str]:
    """Return what sampling does to each distinct defence, one line each; none without sampling.

    Parameters
    ----------
    delta
        In (0, 1): the probability with which f may be exceeded in some round.
    """
    sampled = [e for e in experiments if e.mode == "federated" and sample_size(e) < e.clients]
    return list(dict.fromkeys(sentence(e, delta=delta) for e in sampled))


def sentence(e: Experiment, *, delta: float) -> str:
    """Say how likely one run's f is exceeded, and what would bear it."""
    cohort = sample_size(e)
    drawn = {"clients": e.clients, "byzantine": e.byzantine, "rounds": e.rounds}
    f, whose = borne(e, cohort)
    chance = exceeds(f, cohort=cohort, **drawn)
    needed = smallest_f(cohort=cohort, delta=delta, **drawn)
    least = smallest_cohort(e.rule, delta=delta, pre=e.pre, **drawn)
    enough = f"the smallest cohort in which {e.rule['name']} bears that is {least}"
    if least is None:
        enough = f"in no cohort of these clients {e.rule['name']} bears that"
    return (
        f"{defence(e)}: {cohort} of {e.clients} clients are asked in each of {e.rounds} rounds,"
        f" {e.byzantine} are Byzantine. More than {whose} f={f} of those asked are in some round"
        f" with probability {chance:.3g}. Below {delta:g} it is from f={needed} on; {enough}"
    )


def borne(e: Experiment, cohort: int) -> tuple[int, str]:
    """Return the f that a defence is told, or the most that one without f bears."""
    told = [one["f"] for one in (e.rule, *e.pre) if "f" in one]
    if told:
        return min(told), "its"
    most = tolerated(e.rule, n=cohort, pre=e.pre)
    return ((cohort - 1) // 2, "half:") if most is None else (most, "its")
