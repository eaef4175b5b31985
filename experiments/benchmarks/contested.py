"""Wrong files among those kept, by placement and rule: the table of the contested rule.

``python -m experiments.benchmarks.contested`` prints the Markdown table of the page *Byzantine
workers under redundancy* (Aspis, K = 15, r = 3, 455 files); ``--json`` one line a cell. It needs
no training: labels follow from who distorts what. A few seconds on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fedrobust.redundancy import assign, corrupt, corrupted_labels
from fedrobust.redundancy.bounds import wrong_bound
from fedrobust.redundancy.decision import judge
from fedrobust.redundancy.voting import second_stage_minimum

WORKERS, REPLICATION = 15, 3
RULES = ("contested", "strict", "paper")
CASES = (
    (2, "att2"), (4, "att2"), (6, "att2"), (4, "small_d"), (6, "small_d"), (4, "lone_files"),
    (6, "lone_files"),
)  # fmt: skip


def cell(q: int, placement: str, rule: str) -> dict[str, Any]:
    """Return how many files a rule keeps under a placement, how many are wrong, and what follows.

    "stage" is "mean", or "N buckets" (of a median), or "files" (a median over all of them).
    """
    made = assign("aspis", workers=WORKERS, replication=REPLICATION)
    attack = corrupt(placement, made, q=q)
    labels = corrupted_labels(made, attack)
    verdict, _ = judge(labels, q=q, detection=rule, length=1)
    kept = (verdict.chosen >= 0).nonzero().flatten().tolist()
    wrong = sum(bool(attack.distorted[int(verdict.chosen[file]), file]) for file in kept)
    stage = "mean" if verdict.plain else "files"
    if rule == "contested" and not verdict.plain:
        most = wrong_bound(made, q=q, kind=str(verdict.bound), subsets=True)
        stage = f"{second_stage_minimum('median', distorted=most or 0)} buckets"
    return {"q": q, "placement": placement, "rule": rule, "kept": len(kept), "wrong": wrong,
            "stage": stage}  # fmt: skip


def rows() -> Iterator[list[dict[str, Any]]]:
    """Yield one row of the table at a time: the cells of all rules."""
    for q, placement in CASES:
        yield [cell(q, placement, rule) for rule in RULES]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    if not options.json:
        print(f"| q | placement | {' | '.join(RULES)} |\n|---|---|---|---|---|")
    for row in rows():
        if options.json:
            print("\n".join(json.dumps(one) for one in row))
            continue
        told = [f"{c['wrong']} of {c['kept']}, {c['stage']}" for c in row]
        print(f"| {row[0]['q']} | {row[0]['placement']} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
