"""Measure what a GPU is worth here: ``make gpu``, or ``python -m experiments.benchmarks.gpu``.

The cases run in order of worth, each in a process of its own with its own limit, until the budget
is spent; every cell's numbers are written when they come, beside a page with machine and versions.
Called again it goes on where it stopped. ``--pretend`` runs tiny sizes on a CPU, to see that all of
it works; ``--pack FILE`` makes one archive for a machine with a GPU and without a network.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from experiments.benchmarks.gpu import machine, packing, page
from experiments.benchmarks.gpu.budget import Budget, Course
from experiments.benchmarks.gpu.ledger import Ledger
from experiments.benchmarks.gpu.plan import CASES
from fedrobust.text import slug

RESULTS = Path(__file__).parents[1] / "results"
MINUTES = 12.0


def main() -> None:
    """Run what the command line asks for."""
    given = arguments()
    if given.pack is not None:
        print(packing.pack(given.pack, data_root=given.data_root, python=given.python))
        return
    device = given.device or ("cpu" if given.pretend else "cuda")
    if not given.pretend and not torch.cuda.is_available():
        raise SystemExit(
            "make gpu: PyTorch sees no GPU here, and nothing was measured; --pretend tries every"
            " case on the CPU at tiny sizes, --pack FILE takes all of it to a machine that has one"
        )
    facts = machine.described(device)
    name = f"gpu_{'pretended' if given.pretend else slug(facts['GPU']).replace('-', '_')}"
    folder = given.output or (Path("results/gpu") if given.pretend else RESULTS)
    ledger = Ledger(folder / f"{name}.jsonl", machine.identity(facts))
    if given.fresh:
        ledger.path.unlink(missing_ok=True)
    course = Course(
        device, given.pretend, given.data_root, folder / "left", ledger,
        told=lambda: page.write(folder / f"{name}.md", facts, ledger.records()),
    )  # fmt: skip
    course.run(given.cases, Budget(given.budget))
    print(f"written: {folder / name}.md, {ledger.path}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--budget", type=float, default=MINUTES, metavar="MINUTES")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"only these of {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--data-root", default=os.environ.get("FEDROBUST_DATA"))
    parser.add_argument("--device", help="cuda (default), cuda:1, ...")
    parser.add_argument("--pretend", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write the archive (.tar.gz)")
    parser.add_argument("--python", default=packing.PYTHON, help="version that the archive is for")
    return parser.parse_args()


if __name__ == "__main__":
    main()
