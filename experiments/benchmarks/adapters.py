"""What to aggregate of adapters: A and B apart, or their product; rules under three attacks.

``python -m experiments.benchmarks.adapters --json`` prints one JSON line per run of
``experiments/tasks/adapters.toml`` in both forms; ``--table FILE`` reads such lines and prints the
page's table. The two forms of one seed share data, initial weights, batches and attackers:
differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from experiments.simulation import simulate
from fedrobust import plugins
from fedrobust.experiment.load import parse_spec, read
from fedrobust.training import one_thread

TASK = Path(__file__).parents[1] / "tasks" / "adapters.toml"
FORMS = ("factors", "product")
Line = dict[str, Any]
Cell = tuple[str, str]  # attack, rule


def runs(seeds: Iterable[int]) -> Iterator[Line]:
    """Run the task's sweep in both forms, and the plain mean without an attack."""
    plugins.use(TASK.with_suffix(".py"))
    document = read(TASK)
    axes = document.pop("sweep")
    for seed in seeds:
        cases = [("none", "mean"), *itertools.product(axes["attack"], axes["rule"])]
        for (attack, rule), form in itertools.product(cases, FORMS):
            yield _run(document, seed=seed, attack=attack, rule=rule, adapters=form)


def _run(document: dict[str, Any], **changes: Any) -> Line:
    # CPU seconds, not the clock's: other programs on the machine do not count.
    began = time.process_time()
    with one_thread():
        row = simulate(document, **changes).runs[0][1][-1]
    name = parse_spec(changes["attack"])["name"]
    seconds = round(time.process_time() - began, 2)
    measured = {key: row[key] for key in ("accuracy", "worst_client", "loss")}
    return {"case": changes | {"attack": name}, **measured, "cpu_seconds": seconds}


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean of a few values, and half of its 95 % interval (Student's t)."""
    given = list(values)
    half = student.ppf(0.975, len(given) - 1) * statistics.stdev(given) / len(given) ** 0.5
    return statistics.mean(given), float(half)


def table(lines: Iterable[Line]) -> str:
    """Write accuracy in per cent by attack and rule: each form, and the difference by seed."""
    found: dict[Cell, dict[str, dict[int, float]]] = {}
    for line in lines:
        case = line["case"]
        cell = found.setdefault((case["attack"], case["rule"]), {form: {} for form in FORMS})
        cell[case["adapters"]][case["seed"]] = 100 * line["accuracy"]
    rows = ["| attack | rule | A and B apart | product | product minus apart |", "| --- " * 5 + "|"]
    for (attack, rule), forms in found.items():
        apart, product = (forms[form] for form in FORMS)
        # In pairs: how easy a seed's data are shows in both forms, and drops out of their
        # difference.
        values = (apart.values(), product.values(), [product[s] - apart[s] for s in apart])
        told = [f"{mean:.1f} ± {half:.1f}" for mean, half in map(interval, values)]
        rows.append(f"| {attack} | {rule} | {' | '.join(told)} |")
    return "\n".join(rows)


def main() -> None:
    """Print one JSON line per run, or the table of such lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per run (always)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", metavar="FILE", help="lines of an earlier call, - for stdin")
    given = parser.parse_args()
    if given.table:
        text = sys.stdin.read() if given.table == "-" else Path(given.table).read_text()
        print(table(map(json.loads, text.splitlines())))
        return
    for line in runs(given.seeds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
