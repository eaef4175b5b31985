"""When a measured worst case may be wrong: what to look at, after AutoAttack's flags.

Each is a pure function on the rows of runs (or on an experiment) that returns a sentence, empty
where there is nothing to say. ``flags`` asks all of them about one defence.

References
----------
Croce, Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks, ICML 2020, and the flags of its program.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.tables import final, half_width
from fedrobust.aggregation.tables import PREAGGREGATOR_RECORDS, RULES, rule_record
from fedrobust.attacks import reach
from fedrobust.attacks.members import is_searched
from fedrobust.attacks.searched import SIZES
from fedrobust.experiment import auto
from fedrobust.experiment.schema import Experiment
from fedrobust.spec import parameters
from fedrobust.text import printable

Row = dict[str, Any]
Run = tuple[Experiment, list[Row]]

RISING = 0.01  # accuracy gained over the last fifth of the rounds
FIFTH = 0.8
WIDE = 0.10  # half-width of a 95 % interval
SPREAD = 0.05  # between the best and the worst seed
MARGIN = 0.01  # what one attack must do more than another to count
OFTEN = 0.5  # of the rounds
FORESEEN = 1e-2  # relative: more than transport and rounding make of a deviation
WEAK = 2.0  # times chance


def rising(rows: Sequence[Row]) -> str:
    """Accuracy is still rising at the end: the run is too short to say what an attack leaves."""
    measured = [(r["round"], r["accuracy"]) for r in rows if "accuracy" in r]
    earlier = [(n, a) for n, a in measured if n <= FIFTH * measured[-1][0]] if measured else []
    gain = measured[-1][1] - earlier[-1][1] if earlier else 0.0
    if len(measured) < 3 or gain <= RISING:
        return ""
    return (
        f"accuracy is still rising at the end: by {100 * gain:.1f} points"
        f" since round {earlier[-1][0]}; train for longer"
    )


def below_chance(rows: Sequence[Row], *, chance: float | None) -> str:
    """Accuracy is below that of a guess: the model was turned, not merely harmed."""
    found = final(rows)
    # A tenth below, since a model that merely guesses is under chance at times.
    if chance is None or not found < 0.9 * chance:
        return ""
    return f"accuracy {100 * found:.1f} is below chance ({100 * chance:.0f}): the model is turned"


def spread_over_seeds(accuracies: Sequence[float], *, what: str) -> str:
    """The seeds differ by more than 5 points: a mean over them says little."""
    far = max(accuracies) - min(accuracies) if accuracies else 0.0
    if far <= SPREAD:
        return ""
    return f"{what}: the seeds differ by {100 * far:.1f} points; take more of them"


def wide_interval(accuracies: Sequence[float], *, what: str) -> str:
    """The seeds are so few, or so far apart, that the interval of the mean tells nothing."""
    half = half_width(accuracies)
    if not half > WIDE:
        return ""
    return (
        f"{what}: {len(accuracies)} seeds give an interval of ± {100 * half:.1f} points;"
        " take more of them"
    )


def never_stepped(rows: Sequence[Row]) -> str:
    """Not one round took a step: the accuracy is that of the initial model."""
    trained = [row for row in rows if row["round"] > 0]
    if not trained or not all("kept" in row for row in trained):
        return ""
    return f"not one of {len(trained)} rounds took a step: {printable(trained[0]['kept'])}"


def at_the_edge(rows: Sequence[Row]) -> str:
    """The search chose the largest or smallest size of its grid: beyond it there may be worse."""
    sizes = [r["search"]["size"] for r in rows if "size" in r.get("search", {})]
    at = [size for size in sizes if size >= SIZES[-1] * 0.99 or size <= SIZES[0] * 0.51]
    if not sizes or len(at) <= OFTEN * len(sizes):
        return ""
    return (
        f"the best size was at the edge of the grid in {len(at)} of {len(sizes)} rounds:"
        " the defence is unbounded, or worse is beyond"
    )


def fixed_beats_searched(accuracies: Mapping[str, float], searched: Sequence[str]) -> str:
    """A published attack does more harm than every search: the searches want the wrong thing here.

    Parameters
    ----------
    accuracies
        Attack -> accuracy under it.
    searched
        Which of them search.
    """
    ours = {name: a for name, a in accuracies.items() if name in searched}
    theirs = {name: a for name, a in accuracies.items() if name not in searched}
    if not ours or not theirs or not min(theirs.values()) < min(ours.values()) - MARGIN:
        return ""
    worst = min(theirs, key=theirs.__getitem__)
    gap = 100 * (min(ours.values()) - theirs[worst])
    return f"the fixed attack {worst} does {gap:.1f} points more harm than any search"


def fewer_do_more(fewer: float, all_of_them: float) -> str:
    """The search with fewer candidates does more harm: its wish is not the harm."""
    if not fewer < all_of_them - MARGIN:
        return ""
    gap = 100 * (all_of_them - fewer)
    return f"gradient_search with fewer candidates does {gap:.1f} points more harm"


def memory_differs(rows: Sequence[Row]) -> str:
    """The colluders expected another aggregate than the server made: they attack another rule."""
    pairs = [
        (r["search"]["deviation"], r["impact"]["deviation"])
        for r in rows
        if "deviation" in r.get("search", {}) and "impact" in r
    ]
    # Under redundancy nobody knows all honest values: there the files that are wrong must agree.
    pairs += [
        (r["search"]["wrong_files"], r["wrong_files"])
        for r in rows
        if "wrong_files" in r.get("search", {}) and "wrong_files" in r
    ]
    wrong = [1 for a, b in pairs if abs(a - b) > FORESEEN * max(abs(a), abs(b), 1e-6)]
    if not wrong:
        return ""
    return (
        f"in {len(wrong)} of {len(pairs)} rounds the server's aggregate was not the one that the"
        " attackers expected: their memory of the rule, or what it draws, differs"
    )


def owns_nothing(rows: Sequence[Row]) -> str:
    """No file that the server kept was wrong: the scheme left the attackers nothing to send in."""
    # A code gives the exact sum of all files, or keeps the model.
    shares = [r.get("wrong_files", 0.0) for r in rows if "wrong_files" in r or "path" in r]
    reached = sum(share > 0 for share in shares)
    if not shares or reached > OFTEN * len(shares):
        return ""
    told = "vacuous" if not reached else "weak"
    return (
        f"{told}: a file that the server kept was wrong in {reached} of {len(shares)} rounds: there"
        " the attackers' vectors had no say, whatever they were; what harm there is comes from"
        " files that were dropped"
    )


def is_random(experiment: Experiment) -> str:
    """The defence draws: the attackers cannot know what it will answer."""
    if not experiment.rule:  # a vote without one
        return ""
    rule = experiment.rule["name"]  # one of the user's own is in the table during its run only
    named = [(rule, rule_record(rule).compute)] if rule in RULES else []
    for spec in experiment.pre:
        if spec["name"] in PREAGGREGATOR_RECORDS:
            named.append((spec["name"], PREAGGREGATOR_RECORDS[spec["name"]].compute))
    drawing = [name for name, compute in named if "generator" in parameters(compute)]
    files = experiment.redundancy.name and not experiment.redundancy.coordinates
    if files and rule in RULES and rule_record(rule).order_matters and not drawing:
        return f"{rule} goes by the order of the files, which the server shuffles unforeseen"
    if not drawing:
        return ""
    return f"{', '.join(drawing)} draws at random: the attackers ask it with draws of their own"


def weak_without_attack(accuracies: Sequence[float], *, chance: float | None) -> str:
    """Without an attack the accuracy is low, or differs from seed to seed: nothing to be harmed."""
    if not accuracies:
        return "there is no run without an attack to compare with"
    mean = statistics.fmean(accuracies)
    # Of two classes twice chance is everything: there it is half of the way from chance.
    if chance is not None and mean < min(WEAK * chance, (1 + chance) / 2):
        return f"without an attack the accuracy is {100 * mean:.1f} only: there is little to harm"
    return spread_over_seeds(accuracies, what="without an attack")


def told_too_few(experiment: Experiment) -> str:
    """The rule was told of fewer attackers than there are: its guarantee is not for this run."""
    stages = [*experiment.pre, experiment.rule]
    few = [s for s in stages if "f" in s and s["f"] < experiment.byzantine]
    if not few:
        return ""
    told = ", ".join(f"{s['name']} f = {s['f']}" for s in few)
    return f"{told} is below the {experiment.byzantine} attackers: it was promised for fewer"


def vacuous(experiment: Experiment) -> str:
    """The attack is the honest mean, or nearer to it than honest updates are."""
    return auto.weakness(experiment)


def flags(runs: Sequence[Run], *, chance: float | None = None) -> list[str]:
    """Ask every flag about the runs of one defence: seeds times attacks, with "none" among them.

    Parameters
    ----------
    chance
        One over the number of classes; None where that is not known.
    """
    by_attack: dict[str, list[Run]] = {}
    for experiment, rows in runs:
        by_attack.setdefault(label(experiment.attack), []).append((experiment, rows))
    clean = by_attack.pop("none", [])
    finals = {name: [final(rows) for _, rows in found] for name, found in by_attack.items()}
    means = {name: statistics.fmean(values) for name, values in finals.items()}
    if not means:
        return []
    winner = min(means, key=means.__getitem__)
    searched = [n for n, found in by_attack.items() if is_searched(found[0][0].attack)]
    first = by_attack[winner][0][0]
    said = [
        *_each(rising, clean or by_attack[winner]),
        *_each(lambda rows: below_chance(rows, chance=chance), by_attack[winner]),
        *_each(never_stepped, by_attack[winner]),
        spread_over_seeds(finals[winner], what=winner),
        wide_interval(finals[winner], what=winner),
        *_each(owns_nothing, by_attack[winner]),
        *_each(at_the_edge, by_attack[winner]),
        fixed_beats_searched(means, searched),
        _fewer(means),
        *_each(memory_differs, by_attack[winner]),
        is_random(first),
        weak_without_attack([final(rows) for _, rows in clean], chance=chance),
        told_too_few(first),
        reach.farther(first),
        *(vacuous(found[0][0]) for name, found in by_attack.items() if name == winner),
    ]
    return list(dict.fromkeys(filter(None, said)))


def _fewer(means: Mapping[str, float]) -> str:
    fewer, usual = "gradient_search refinements=0", "gradient_search"
    return fewer_do_more(means[fewer], means[usual]) if {fewer, usual} <= means.keys() else ""


def _each(flag: Callable[[list[Row]], str], runs: Sequence[Run]) -> list[str]:
    """Ask a flag about each seed's rows; the first sentence stands for all."""
    said = [sentence for _, rows in runs if (sentence := flag(rows))]
    return said[:1]


def label(spec: Mapping[str, Any]) -> str:
    """Write an attack with its settings: ``alie z=1.5``; what it sees is left out."""
    told = [f"{k}={v}" for k, v in spec.items() if k not in ("name", "knowledge")]
    return " ".join([spec["name"], *told])
