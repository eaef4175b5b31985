"""Train the CIFAR-10 figures of the Aspis paper, the most telling runs first.

``python -m experiments.papers.aspis.campaign FOLDER --data-root DATA`` runs what is not finished,
one run at a time on one core, and can be stopped at any moment: a run writes its rows as they come,
and the next call continues it from its last checkpoint. ``--list`` says what is done. Each run is
the one that ``fedrobust run FILE --seeds 3`` makes, under the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from experiments.sweep import Sweep
from fedrobust.experiment.load import expand, read
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

HERE = Path(__file__).parent
SEEDS = 3

# A stage is made for all seeds before the next one: (file, schemes, numbers of Byzantine workers).
STAGES: tuple[tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...], ...] = (
    (
        ("figure13", ("aspis_plus",), (2, 4)),
        ("contested", ("aspis",), (4,)),
        ("figure13", ("detox", "none"), (2, 4)),
    ),
    (("contested", ("aspis",), (2,)),),
    (
        ("baselines", ("detox", "none"), (4, 2)),
        ("weak_q6", ("aspis", "detox", "none"), (6,)),
        ("figure12", ("aspis", "detox", "none"), (2,)),
        ("figure14", ("aspis_plus", "detox", "none"), (7, 9)),
    ),
)


def ordered(seeds: int = SEEDS) -> Iterator[tuple[str, Experiment]]:
    """Yield (file, run), stage by stage and seed by seed."""
    made = {path: expand(read(HERE / f"{path}.toml"), seeds=seeds) for path in files()}
    for stage in STAGES:
        for seed in range(1, seeds + 1):
            for name, schemes, byzantine in stage:
                for e in made[name]:
                    chosen = e.redundancy.name in schemes and e.byzantine in byzantine
                    if chosen and e.seed == seed:
                        yield name, e


def files() -> list[str]:
    """Return the names of the files that the campaign trains."""
    return list(dict.fromkeys(name for stage in STAGES for name, _, _ in stage))


def main() -> None:
    """Run, or say what is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--list", action="store_true", help="say what is done, and run nothing")
    options = parser.parse_args()
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
