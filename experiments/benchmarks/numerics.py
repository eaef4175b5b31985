"""A table of numerics: every rule and pre-aggregator on every awkward kind of input.

``python -m experiments.benchmarks.numerics [--json] [--rules NAME ...]``; about a minute. Each case
must give a finite result that is right (where the right one is known), or one of the two errors
that a rule may raise; "wrong" in the last column is a fault.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import (
    PREAGGREGATORS,
    RULES,
    aggregate,
    preaggregate,
    preaggregator_record,
    rule_record,
)
from fedrobust.spec import parameters

NEEDED: dict[str, dict[str, Any]] = {
    "centered_clipping": {"tau": 3.0}, "norm_clipping": {"bound": 3.0}, "clip": {"bound": 3.0},
    "median_of_means": {"groups": 5}, "bucketing": {"size": 2, "permute": False},
    "flame": {"noise": 0.0}, "rlr": {"threshold": 4}, "huber": {"threshold": 3.0},
    "projected": {"dimension": 64}, "randeigen": {"dimension": 64}, "filtering": {"variance": 10.0},
    "zeno": {"loss": lambda step: float(step.double().sum()), "rho": 0.001},
    "safeguard": {
        "window": 6, "threshold": 20.0, "short_window": 3, "short_threshold": 20.0,
    },
}  # fmt: skip


def spec_of(name: str, *, f: int, n: int, d: int) -> dict[str, Any]:
    """Return a spec with the settings that the plug-in cannot do without."""
    given = dict(NEEDED.get(name, {}))
    if "f" in parameters((RULES | PREAGGREGATORS)[name]):
        given["f"] = min(f, (n - 3) // 4) if name == "bulyan" else f
    if name == "fltrust":
        given["root"] = torch.ones(d)
    if name == "lasa":
        given["layers"] = (("weight", (d // 2, 1)), ("bias", (d - d // 2,)))
    if name == "alignins":
        given["model"] = torch.ones(d)
    return {"name": name, **given}


@dataclass(frozen=True)
class Case:
    """An awkward input.

    Attributes
    ----------
    make
        Plain float32 rows (n, d) -> the input.
    refused
        Whether every rule must refuse it; otherwise none may.
    same
        Whether the result must be that of the plain rows (the input differs in form alone).
    may_refuse
        Rules that may refuse it: none of theirs is defined there.
    """

    make: Callable[[Tensor], Any]
    refused: bool = False
    same: bool = False
    may_refuse: tuple[str, ...] = ()


def _with(row: int, value: float) -> Callable[[Tensor], Tensor]:
    def make(rows: Tensor) -> Tensor:
        changed = rows.clone()
        changed[row] = value
        return changed

    return make


def _strided(rows: Tensor) -> Tensor:
    return rows.t().contiguous().t()


CASES: dict[str, Case] = {
    "plain": Case(lambda x: x, same=True),
    "one NaN": Case(_with(1, float("nan"))),
    "one +Inf": Case(_with(1, float("inf"))),
    "one -Inf": Case(_with(1, -float("inf"))),
    "all NaN": Case(lambda x: x * float("nan"), refused=True),
    "one row of 1e30": Case(_with(1, 1e30)),
    "one row of 1e38": Case(_with(1, 1e38), may_refuse=("foolsgold",)),
    "all of size 1e-25": Case(lambda x: x * 1e-25),
    "float16 of norm 1000": Case(lambda x: (x * 300).half()),
    "bfloat16": Case(lambda x: x.bfloat16()),
    "float64": Case(lambda x: x.double(), same=True),
    "float64 of size 1e200": Case(lambda x: x.double() * 1e200, may_refuse=("foolsgold",)),
    "float64, one row of 1e200": Case(lambda x: _with(1, 1e200)(x.double())),
    "float64 of size 1e-200": Case(lambda x: x.double() * 1e-200),
    "duplicates": Case(lambda x: x[:1].expand(len(x), -1)),
    "zeros": Case(torch.zeros_like),
    "large offset": Case(lambda x: x * 1e-3 + 1e3),
    "columns in one piece": Case(_strided, same=True),
    "every other column": Case(lambda x: torch.stack([x, x], 2)[:, :, 0], same=True),
    "gradients": Case(lambda x: x.clone().requires_grad_(), same=True),
    "numpy": Case(lambda x: x.numpy(), same=True),
    "list of rows": Case(list, same=True),
    "whole numbers": Case(lambda x: x.int(), refused=True),
    "complex numbers": Case(lambda x: x + 0j, refused=True),
    "d = 0": Case(lambda x: x[:, :0], refused=True),
    "n = 0": Case(lambda x: x[:0], refused=True),
    "d = 1": Case(lambda x: x[:, :1]),
}


def verdict(name: str, case: Case, rows: Tensor) -> str:
    """Return "right", "refused: why" or "wrong: why" for one rule and case."""
    given = case.make(rows)
    d = given.shape[1] if isinstance(given, Tensor) and given.dim() == 2 else rows.shape[1]
    try:
        result = _call(name, given, n=len(rows), d=d)
    except (ValueError, TypeError) as error:
        allowed = case.refused or name in case.may_refuse
        return f"{'refused' if allowed else 'wrong: refused'}: {error}"
    except Exception as error:  # whatever else leaves a rule is the fault that the table looks for
        return f"wrong: {type(error).__name__}: {error}"
    if case.refused:
        return "wrong: accepted"
    if not bool(torch.isfinite(result).all()):
        return "wrong: not finite"
    if case.same:
        plain = _call(name, rows, n=len(rows), d=rows.shape[1])
        # Sums in float32 differ by the order in which a layout lets them be taken.
        if not torch.allclose(result.double(), plain.double(), rtol=1e-4, atol=1e-5):
            return "wrong: differs from the plain rows"
    return "right"


def _call(name: str, given: Any, *, n: int, d: int) -> Tensor:
    spec = spec_of(name, f=2, n=n, d=d)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in PREAGGREGATORS:
            return preaggregate(given, spec, generator=generator)
        return aggregate(given, spec, generator=generator)


def rows_of(name: str, *, n: int, d: int) -> Iterator[dict[str, Any]]:
    """Yield the table's lines for one rule."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    for title, case in CASES.items():
        yield {"rule": name, "case": title, "verdict": verdict(name, case, rows)}
    fewest = _fewest(name, n, d)
    if fewest < n:
        yield {"rule": name, "case": f"n = {fewest}, its fewest",
               "verdict": verdict(name, CASES["plain"], rows[:fewest])}  # fmt: skip


def _fewest(name: str, n: int, d: int) -> int:
    spec = spec_of(name, f=2, n=n, d=d)
    settings = {key: value for key, value in spec.items() if key != "name"}
    record = preaggregator_record(name) if name in PREAGGREGATORS else rule_record(name)
    return max(1, record.minimum(settings))


def main() -> None:
    """Print one line per rule and case; exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--rules", nargs="*", help="only these")
    options = parser.parse_args()
    wrong = 0
    for name in options.rules or [*RULES, *PREAGGREGATORS]:
        for row in rows_of(name, n=11, d=500):
            wrong += row["verdict"].startswith("wrong")
            print(
                json.dumps(row) if options.json else "{rule:30} {case:28} {verdict}".format(**row)
            )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
