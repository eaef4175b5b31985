"""A federation whose sites differ in size: who decides how much each of them counts.

``python -m experiments.benchmarks.unequal_sites [--json]``; about a minute on one core. One
honest site has half of the images, a malicious one 0.6 %, eight the rest in equal parts; seven
tenths of the images are sorted by label first. The digits, three seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmarks.measuring import Row, show
from experiments.simulation import simulate
from fedrobust.experiment.schema import ConfigError

SHARES = (0.5, 0.006, *(0.494 / 8,) * 8)
BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "clients": len(SHARES),
    "byzantine": 1,
    "placement": {"name": "fixed", "ids": [1]},
    "partition": {"name": "sizes", "shares": list(SHARES), "gamma": 0.3},
    "rounds": 15,
    "training": {"mode": "update", "epochs": 1, "batch_size": 16, "lr": 0.1},
    "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 100},
}
ATTACKS: dict[str, Any] = {"none": "none", "scaled": {"name": "reversed_gradient", "scale": 300.0}}
CUT = {"name": "truncated", "share": 0.3}
WEIGHTED: tuple[tuple[str, Any], ...] = (
    ("mean", "equal"),
    ("mean", "claimed"),
    ("median", "equal"),
    ("median", "attested"),
    ("median", {"name": "attested", "share": 0.3}),
    ("median", CUT),
    ("trimmed_mean", "equal"),
    ("trimmed_mean", {"name": "attested", "table": {str(i): s for i, s in enumerate(SHARES)}}),
    ("trimmed_mean", CUT),
    ("geometric_median", "equal"),
    ("geometric_median", CUT),
)


def title(spec: Any) -> str:
    """Write weights as ``truncated at 0.3``."""
    if isinstance(spec, str):
        return spec
    return spec["name"] + (f" at {spec['share']:g}" if "share" in spec else "")


def cases(*, seeds: Sequence[int], rounds: int, **changes: Any) -> Iterator[Row]:
    """Yield one line per rule, weights and attack."""
    for rule, weights in WEIGHTED:
        for attack, spec in ATTACKS.items():
            row: Row = {"rule": rule, "weights": title(weights), "attack": attack}
            document = BASE | {"rule": rule, "weights": weights, "attack": spec, "rounds": rounds}
            try:
                runs = [simulate(document | changes | {"seed": seed}) for seed in seeds]
            except ConfigError as error:
                yield row | {"refused": str(error)}
                continue
            found = [run.accuracy for run in runs]
            yield row | {
                "accuracy": round(statistics.fmean(found), 4),
                "lowest": round(min(found), 4),
                "highest": round(max(found), 4),
            }


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=BASE["rounds"])
    options = parser.parse_args()
    rows = cases(seeds=range(1, 1 + options.seeds), rounds=options.rounds)
    show(rows, _text, as_json=options.json)


def _text(row: Row) -> str:
    case = f"{row['rule']:18} {row['weights']:18} {row['attack']:8}"
    if "refused" in row:
        return f"{case} refused: {row['refused']}"
    return f"{case} {row['accuracy']:.1%}  ({row['lowest']:.1%} .. {row['highest']:.1%})"


if __name__ == "__main__":
    main()
