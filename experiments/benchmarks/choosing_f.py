"""What too small and too large an f cost, measured; and what sampling does to f.

``python -m experiments.benchmarks.choosing_f [--json]``; about a minute on one core.
The digits, three seeds. First 15 clients with 3 Byzantine ones, of which the defence is told f.
Then 50 clients with 5 Byzantine ones, of which 15 are asked in a round: f by the share of the
population, and by the sample.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmarks.measuring import Row, show
from experiments.simulation import simulate
from fedrobust.aggregation.cohorts import exceeds, smallest_f

BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "clients": 15,
    "byzantine": 3,
    "rounds": 30,
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "training": {"batch_size": 16},
    # More rounds than there are: of those that train only the last one is evaluated.
    "server": {"lr": 0.1, "momentum": 0.9, "evaluate_every": 1000},
}
TOLD = (0, 1, 2, 3, 4, 6)
DEFENCES = ("trimmed_mean", "multi_krum", "nnm+trimmed_mean")
ATTACKS: tuple[Any, ...] = ("none", {"name": "alie", "z": 1.5}, "reversed_gradient")
SAMPLED: dict[str, Any] = {"clients": 50, "byzantine": 5, "participation": 0.3, "rounds": 30}


def told(*, seeds: Sequence[int], **changes: Any) -> Iterator[Row]:
    """Yield the accuracy of each defence, attack and f that the defence was told."""
    for defence in DEFENCES:
        for attack in ATTACKS:
            for f in TOLD:
                document = BASE | {"attack": attack} | _spelled(defence, f)
                yield _name(defence, attack, f) | _measured(document | changes, seeds)


def sampled(*, seeds: Sequence[int], **changes: Any) -> Iterator[Row]:
    """Yield the same where f follows the population, and where it follows the sample."""
    drawn = {"clients": SAMPLED["clients"], "byzantine": SAMPLED["byzantine"],
             "cohort": round(SAMPLED["participation"] * SAMPLED["clients"]),
             "rounds": SAMPLED["rounds"]}  # fmt: skip
    share = round(drawn["byzantine"] / drawn["clients"] * drawn["cohort"])
    for defence in DEFENCES:
        for attack in ATTACKS[2:]:
            for f in (share, smallest_f(**drawn)):
                document = BASE | SAMPLED | {"attack": attack} | _spelled(defence, f)
                row = _name(defence, attack, f) | {"exceeded": round(exceeds(f, **drawn), 4)}
                yield row | _measured(document | changes, seeds)


def _spelled(defence: str, f: int) -> dict[str, Any]:
    """Spell ``nnm+rule`` with f for both."""
    *pre, rule = defence.split("+")
    return {"pre": [{"name": one, "f": f} for one in pre], "rule": {"name": rule, "f": f}}


def _name(defence: str, attack: Any, f: int) -> Row:
    return {
        "defence": defence,
        "attack": attack if isinstance(attack, str) else attack["name"],
        "f": f,
    }


def _measured(document: dict[str, Any], seeds: Sequence[int]) -> Row:
    runs = [simulate(document | {"seed": seed}) for seed in seeds]
    found = [run.accuracy for run in runs]
    return {
        "accuracy": round(statistics.fmean(found), 4),
        "lowest": round(min(found), 4),
        "highest": round(max(found), 4),
        "kappa": round(statistics.fmean(run.frame["kappa"].mean() for run in runs), 4),
    }


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds = range(1, 1 + options.seeds)
    show(told(seeds=seeds), _text, as_json=options.json)
    show(sampled(seeds=seeds), _text, as_json=options.json)


def _text(row: Row) -> str:
    asked = f"  exceeded in some round: {row['exceeded']:.3g}" if "exceeded" in row else ""
    return (
        f"{row['defence']:18} {row['attack']:18} f={row['f']}  {row['accuracy']:.1%}"
        f"  ({row['lowest']:.1%} .. {row['highest']:.1%})  kappa {row['kappa']:.3g}{asked}"
    )


if __name__ == "__main__":
    main()
