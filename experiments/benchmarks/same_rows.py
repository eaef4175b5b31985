"""Whether two versions of fedrobust compute the same rows, bit for bit.

``python -m experiments.benchmarks.same_rows OLD NEW`` runs short experiments of all three modes in
a process of each source tree and prints one line per run: equal, or the first round and column that
differ. Columns that only one of the trees has are named, not compared. Exit code 1: a run differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.measuring import environment_of

Document = dict[str, Any]
Row = Mapping[str, Any]
BASE: Document = {
    "data": "fashionmnist-sample", "model": "mlp", "clients": 20, "byzantine": 4, "rounds": 3,
    "seed": 1, "rule": "mean", "attack": "none", "partition": {"name": "dirichlet", "alpha": 0.5},
    "training": {"mode": "gradient", "batch_size": 32},
    "server": {"lr": 0.05, "momentum": 0.9, "evaluate_every": 1},
}  # fmt: skip
RULES = ("mean", "median", "trimmed_mean", "krum", "nnm+trimmed_mean")
ATTACKS: tuple[Any, ...] = (
    "none", {"name": "alie", "z": 1.5, "knowledge": "omniscient"}, "seesaw", "sign_flip", "nan",
)  # fmt: skip
LOCAL = {"mode": "update", "batch_size": 32, "steps": 2, "lr": 0.05, "momentum": 0.9}
# Fifteen workers on the digits: the redundancy and ensemble cases are about messages, not learning.
SMALL: Document = {
    "data": "digits", "model": "linear", "clients": 15, "byzantine": 3, "seed": 1, "rounds": 3,
    "rule": "median", "attack": "sign_flip", "server": {"lr": 0.1, "evaluate_every": 1},
}  # fmt: skip
CASES: dict[str, Document] = {
    **{
        f"quickstart {rule} / {attack if isinstance(attack, str) else attack['name']}":
        BASE | {"rule": rule, "attack": attack}
        for rule in RULES for attack in ATTACKS
    },
    "local steps and momentum": BASE
    | {"training": LOCAL, "rule": "trimmed_mean", "worker_momentum": 0.9},
    "running statistics": BASE | {"model": "bn_cnn", "training": LOCAL, "rule": "median"},
    "aspis, strict": SMALL
    | {"redundancy": {"name": "aspis", "batch": 910, "detection": "strict"}},
    "detox": SMALL
    | {"redundancy": {"name": "detox", "batch": 300, "detection": "paper", "second": "median"}},
    "dat": BASE | {
        "attack": "none", "byzantine": 0, "clients": 4, "rule": "mean",
        "adversarial": {"perturbation": {"name": "fgsm", "eps": 0.03}, "eps": 0.03,
                        "eval_steps": 2, "eval_images": 50},
        "compression": {"bits": 8, "sides": "both"},
    },
    "ensemble": {
        "data": "fashionmnist-sample", "model": "tiny_cnn", "clients": 3, "byzantine": 0,
        "rounds": 2, "seed": 1, "attack": "none",
        "ensemble": {"paradigm": "optimizer", "train_images": 600, "test_images": 200,
                     "votes": ["soft", "hard"]},
    },
}  # fmt: skip
OLDER = {"redundancy": "scheme", "ensemble": "plan"}  # what the tables were called before
# Run by a process of each tree: a document in, its rows out.
RUN = (
    "import json, sys\n"
    "from fedrobust import simulate\n"
    "results = simulate(json.loads(sys.argv[1]))\n"
    "print('ROWS' + json.dumps(results.runs[0][1]))\n"
)


def rows_of(tree: Path, document: Document) -> list[Row]:
    """Run a document in a fresh process of a tree.

    Raises
    ------
    RuntimeError
        With what the process said last, where it gave no rows.
    """
    layout = (tree / "fedrobust" / "experiment").is_dir()
    older = {"rule": "median"} | {OLDER.get(k, k): v for k, v in document.items()}
    given = document if layout else older  # every mode needed a rule then
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(given)],
        cwd=tree, env=environment_of(tree), capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        # Libraries print lines of their own.
        if line.startswith("ROWS"):
            found: list[Row] = json.loads(line[4:])
            return found
    raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])


def difference(old: Sequence[Row], new: Sequence[Row]) -> str:
    """Say where two runs differ first; empty where they do not.

    Seconds are no result; bytes are what a change of the protocol changes, see ``columns``.
    """
    if len(old) != len(new):
        return f"{len(old)} rows and {len(new)}"
    for before, after in zip(old, new, strict=True):
        shared = before.keys() & after.keys()
        for key in sorted(k for k in shared if not k.startswith(("seconds", "bytes"))):
            # As text, so that two NaN are equal and 0.1 differs from its neighbour.
            if json.dumps(before[key]) != json.dumps(after[key]):
                return f"round {before.get('round')}: {key} {before[key]} and {after[key]}"
    return ""


def columns(old: Sequence[Row], new: Sequence[Row]) -> str:
    """Name the columns of one tree alone, and say whether other bytes were sent."""
    sent = [[r[k] for r in rows for k in sorted(r) if k.startswith("bytes")] for rows in (old, new)]
    other = "other bytes" if sent[0] != sent[1] else ""
    before = {key for row in old for key in row}
    after = {key for row in new for key in row}
    parts = [("gone", before - after), ("new", after - before)]
    named = [f"{word}: {', '.join(sorted(keys))}" for word, keys in parts if keys]
    return "; ".join([*named, *([other] if other else [])])


def compared(old: Path, new: Path, only: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the case, where it differs, and the columns of one tree alone."""
    for name, document in CASES.items():
        if not name.startswith(only):
            continue
        try:
            before, after = rows_of(old, document), rows_of(new, document)
        except RuntimeError as error:
            yield name, f"fails: {error}", ""
            continue
        yield name, difference(before, after), columns(before, after)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    given = parser.parse_args()
    print("| run | rows | columns |\n| --- | --- | --- |", flush=True)
    wrong = False
    for name, found, own in compared(given.old.resolve(), given.new.resolve(), given.only):
        wrong |= bool(found)
        print(f"| {name} | {found or 'equal'} | {own} |", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
