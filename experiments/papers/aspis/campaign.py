"""Train the CIFAR-10 figures of the Aspis paper, the most telling runs first.

``python -m experiments.papers.aspis.campaign FOLDER --data-root DATA`` runs what is not finished,
one run at a time on one core, and can be stopped at any moment: a run writes its rows as they come,
and the next call continues it from its last checkpoint. ``--list`` says what is done. Each run is
the one that ``fedrobust run FILE --seeds 3`` makes, under the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.sweep import Sweep
from fedrobust.data.sets import DATASETS
from fedrobust.experiment.load import expand, read
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

HERE = Path(__file__).parent
SEEDS = 3


@dataclass(frozen=True)
class Cell:
    """Runs of one file that belong together; what is empty chooses all."""

    file: str
    byzantine: tuple[int, ...]
    schemes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()

    def holds(self, e: Experiment) -> bool:
        """Whether a run of the file is one of these."""
        return (
            e.byzantine in self.byzantine
            and e.redundancy.name in (self.schemes or (e.redundancy.name,))
            and e.rule["name"] in (self.rules or (e.rule["name"],))
            and e.attack["name"] in (self.attacks or (e.attack["name"],))
        )


# (cells, seeds): a stage is made seed by seed before the next one. Where no distorted file is kept
# the three attacks give the same rows, so that of `contested` one attack comes early.
STAGES: tuple[tuple[tuple[Cell, ...], tuple[int, ...]], ...] = (
    ((Cell("figure13_causes", (0, 2, 4)),), (1,)),
    ((Cell("figure13", (2, 4), rules=("median", "median_of_means")),), (1, 2, 3)),
    ((Cell("contested", (4, 2), attacks=("alie",)),), (1,)),
    ((Cell("baselines", (4, 2), rules=("median", "median_of_means")),), (1,)),
    ((Cell("figure12", (2,)), Cell("figure14", (7, 9)), Cell("weak_q6", (6,))), (1,)),
    ((Cell("contested", (4, 2), attacks=("alie",)),), (2, 3)),
    ((Cell("figure13", (2, 4)), Cell("contested", (4, 2))), (1, 2, 3)),
    ((Cell("figure14_causes", (0, 7)), Cell("figure13_rates", (2,))), (1,)),
    (
        (Cell("baselines", (4, 2)), Cell("weak_q6", (6,)), Cell("figure12", (2,)),
         Cell("figure14", (7, 9))), (1, 2, 3),
    ),
)  # fmt: skip


def ordered(seeds: int = SEEDS) -> Iterator[tuple[str, Experiment]]:
    """Yield (file, run), stage by stage and seed by seed, each run once."""
    made = {path: expand(read(HERE / f"{path}.toml"), seeds=seeds) for path in files()}
    given = set()
    for cells, stage_seeds in STAGES:
        for seed in stage_seeds:
            for cell in cells:
                for e in made[cell.file]:
                    if e.seed == seed and cell.holds(e) and e.run_id not in given:
                        given.add(e.run_id)
                        yield cell.file, e


def files() -> list[str]:
    """Return the names of the files that the campaign trains."""
    return list(dict.fromkeys(cell.file for cells, _ in STAGES for cell in cells))


def main() -> None:
    """Run, or say what is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--list", action="store_true", help="say what is done, and run nothing")
    options = parser.parse_args()
    # One process, one run after the other: the images are read once.
    DATASETS["cifar10"] = cache(DATASETS["cifar10"])
    for name, e in ordered(options.seeds):
        out = options.folder / name
        if not options.list:
            one = Sweep([e], out, data_root=options.data_root, workers=1, resume=True)
            one.run(lambda experiment, row: None)
        rows = RunFolder(out, e).rows()
        done = rows[-1]["round"] if rows else 0
        ends = [row["accuracy"] for row in rows if "accuracy" in row]
        told = f"{100 * ends[-1]:.1f}" if ends else "-"
        scheme = f"{e.redundancy.name}, {e.rule['name']}"
        line = f"{name}: {e.attack['name']}, q={e.byzantine}, {scheme}, seed {e.seed}"
        print(f"{line}: {done} of {e.rounds} rounds, accuracy {told} %", flush=True)


if __name__ == "__main__":
    main()
