"""What a round of the searches costs, asked in full and in coordinates: CPU milliseconds.

    python -m experiments.benchmarks.questions

Both ways in one process, one after the other, the least of some repetitions: machines differ, the
ratio hardly does. Invented rows; the second round, in which all directions are tried.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest import mock

import torch

from fedrobust.attacks import step
from fedrobust.seeds import generator

RULES: tuple[dict[str, Any], ...] = (
    {"name": "krum"},
    {"name": "geometric_median"},
    {"name": "centered_clipping", "tau": 1.0, "iterations": 3},
    {"name": "caf"},
    {"name": "dnc"},
)
TAKES_F = ("krum", "caf", "dnc")
ATTACKS = ("gradient_search", "drift_search")


def round_of(
    attack: str, rule: dict[str, Any], honest: torch.Tensor, n: int, repeats: int
) -> float:
    """Return the CPU milliseconds of one round of an attack, the least of some."""
    f = n - len(honest)
    known = step(honest, attack, n=n, f=f, rule=rule).state
    found = []
    for _ in range(repeats):
        start = time.process_time()
        step(honest.flip(0), attack, n=n, f=f, rule=rule, state=known, round=1)
        found.append(time.process_time() - start)
    return 1e3 * min(found)


def main() -> None:
    """Print one line for each size, rule and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| n | f | d | rule | attack | in full | in coordinates | times faster |")
    print("| ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |")
    for n, f, d in ((20, 4, 6634), (51, 12, 6634), (20, 4, 117706)):
        source = generator(0, "questions")
        honest = 0.1 * torch.randn(n - f, d, generator=source) + 0.05
        for plain in RULES:
            rule = plain | ({"f": f} if plain["name"] in TAKES_F else {})
            for attack in ATTACKS:
                short = round_of(attack, rule, honest, n, repeats)
                # The one place that says whether a rule can be asked in coordinates.
                with mock.patch("fedrobust.attacks.scene.reducible", return_value=None):
                    full = round_of(attack, rule, honest, n, repeats)
                print(
                    f"| {n} | {f} | {d} | {rule['name']} | {attack} | {full:.0f} | {short:.0f} "
                    f"| {full / short:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
