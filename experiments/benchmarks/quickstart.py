"""Keep the README's picture and the numbers behind it.

``fedrobust run experiments/quickstart.toml``, then ``python -m experiments.benchmarks.quickstart``
writes ``experiments/images/quickstart.png`` and ``quickstart.csv``: each run's final accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from experiments.results import load
from experiments.simulation import expand, read
from fedrobust.runs.folder import RunFolder

EXPERIMENTS = Path(__file__).parents[1]
IMAGES = EXPERIMENTS / "images"


def finals(output: Path) -> pd.DataFrame:
    """Draw the sweep's picture and return its table: attack, defence, seed, accuracy in [0, 1]."""
    runs = expand(read(EXPERIMENTS / "quickstart.toml"))
    results = load(RunFolder(output, e).path for e in runs)
    results.plot().savefig(IMAGES / "quickstart.png", dpi=110)
    frame = results.frame.dropna(subset=["accuracy"]).groupby("run", sort=False).last()
    return frame[["attack", "defence", "seed", "accuracy"]]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/quickstart"))
    finals(parser.parse_args().output).to_csv(
        IMAGES / "quickstart.csv", index=False, float_format="%.4f"
    )


if __name__ == "__main__":
    main()
