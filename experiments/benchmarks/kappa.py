"""Robustness coefficients: published, and the worst that a search finds, rule by rule.

``python -m experiments.benchmarks.kappa [--json] [--steps 600]``; about five minutes on one core.
The first n - f rows are honest, the other f hold whatever raises the coefficient; all rows are
searched, from patterns of two values that proofs of lower bounds use, by hill climbing. A measured
value above the published one is a fault of the rule or of the bound.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.measuring import Row, show
from experiments.benchmarks.numerics import spec_of
from fedrobust.aggregation import RULES, aggregate, coefficient, measured, rule_record
from fedrobust.aggregation.bounds import least
from fedrobust.failures import Refusal
from fedrobust.spec import Spec

SIZES = ((5, 1), (9, 2), (12, 3))
# Their coefficient has no bound: settings in units of the rows, a server's own data, a memory, or
# lengths about the origin, which do not follow a translation.
NOT_SEARCHED = (
    "centered_clipping", "norm_clipping", "huber", "fltrust", "zeno", "rsa", "rlr", "fednga",
    "sign_majority", "safeguard", "clipped_clustering", "foolsgold", "flame", "filtering", "lasa",
    "alignins",
)  # fmt: skip
# A coefficient needs four digits; on a line the last ones take thousands of steps.
QUICK: dict[str, dict[str, Any]] = {"geometric_median": {"tolerance": 1e-5, "max_iterations": 100}}
SPOTS = (-1e3, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 1e3)
BEST = 4  # patterns from which the search climbs


def patterns(n: int, f: int, d: int) -> Iterator[Tensor]:
    """Yield inputs on a line: k honest rows at 1, the others at 0, the Byzantine ones at a spot."""
    honest = n - f
    for k, spot in itertools.product(range(1, honest), SPOTS):
        rows = torch.zeros(n, d, dtype=torch.float64)
        rows[:k, 0] = 1.0
        rows[honest:, 0] = spot
        if d > 1:  # off the line, so that distances differ
            rows[:, 1] = torch.linspace(-0.1, 0.1, n, dtype=torch.float64)
        yield rows


def kappa_of(rows: Tensor, spec: Spec, *, f: int, pre: Sequence[Spec] = ()) -> float:
    """Return the coefficient of one input; 0 where the rule refuses it or nobody differs."""
    honest = rows[: len(rows) - f]
    # Honest rows that are all alike have no variance to divide by.
    if float((honest - honest.mean(0)).square().sum()) < 1e-9:
        return 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has not converged")
        try:
            return measured(aggregate(rows, spec, pre=pre), honest)
        except Refusal:
            return 0.0


def worst(
    spec: Spec, *, n: int, f: int, d: int, steps: int, seed: int = 0, pre: Sequence[Spec] = ()
) -> tuple[float, Tensor]:
    """Search the input of the largest coefficient.

    Parameters
    ----------
    spec, pre
        The defence, with its f.
    n, f, d
        Rows, Byzantine ones among them, coordinates.
    steps
        Inputs tried while climbing, beside the patterns.

    Returns
    -------
    The coefficient and the input (n, d), whose first n - f rows are the honest ones.
    """
    source = torch.Generator().manual_seed(seed)
    tried = [(kappa_of(rows, spec, f=f, pre=pre), rows) for rows in patterns(n, f, d)]
    starts = sorted(tried, key=lambda pair: -pair[0])[:BEST]
    found = max(starts, key=lambda pair: pair[0])
    for value, rows in starts:
        for _ in range(steps // BEST):
            moved = _moved(rows, source)
            after = kappa_of(moved, spec, f=f, pre=pre)
            if after > value:
                value, rows = after, moved
        found = max(found, (value, rows), key=lambda pair: pair[0])
    return found


def _moved(rows: Tensor, source: torch.Generator) -> Tensor:
    """Move one row, or one coordinate of it, by a step of any order of magnitude."""
    n, d = rows.shape
    row = int(torch.randint(n, (), generator=source))
    size = 10 ** float(torch.rand((), generator=source) * 4 - 3)
    step = size * torch.randn(d, generator=source, dtype=torch.float64)
    if float(torch.rand((), generator=source)) < 0.5:
        step[torch.arange(d) != int(torch.randint(d, (), generator=source))] = 0
    moved = rows.clone()
    if float(torch.rand((), generator=source)) < 0.2:  # ties are where rules jump
        moved[row] = rows[int(torch.randint(n, (), generator=source))]
        step *= 1e-3
    moved[row] += step
    return moved


def defences(names: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield title, rule and pre-aggregators: each rule, and behind NNM where that has a bound."""
    for name in names:
        yield name, name, ()
        if rule_record(name).kappa is not None:
            yield f"nnm+{name}", name, ("nnm",)


def cases(*, steps: int, names: Sequence[str], sizes: Sequence[Any] = SIZES) -> Iterator[Row]:
    """Yield one line per defence and size."""
    for title, name, before in defences(names):
        for n, f in sizes:
            spec = spec_of(name, f=f, n=n, d=2) | QUICK.get(name, {})
            pre = [{"name": one, "f": f} for one in before]
            if name == "bulyan" and n < 4 * f + 3:
                continue
            found = max(worst(spec, n=n, f=f, d=d, steps=steps, pre=pre)[0] for d in (1, 2))
            bound = coefficient(spec, n=n, f=f, pre=pre)
            yield {"defence": title, "n": n, "f": f, "least": round(least(n, f), 4),
                   "published": None if bound is None else round(bound, 4),
                   "measured": round(found, 4)}  # fmt: skip


def main() -> None:
    """Print one line per case; exit with 1 where a measured value is above the published one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rules", nargs="*", help="only these")
    options = parser.parse_args()
    names = options.rules or [name for name in RULES if name not in NOT_SEARCHED]
    rows = list(cases(steps=options.steps, names=names))
    show(rows, _text, as_json=options.json)
    above = [r for r in rows if r["published"] is not None and r["measured"] > r["published"]]
    raise SystemExit(1 if above else 0)


def _text(row: Row) -> str:
    bound = "-" if row["published"] is None else f"{row['published']:.3g}"
    return (
        f"{row['defence']:32} n={row['n']:<3} f={row['f']}  no rule below {row['least']:.3g}"
        f"  published {bound:>6}  measured {row['measured']:.4g}"
    )


if __name__ == "__main__":
    main()
