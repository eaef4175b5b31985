"""ALIE's Table 1, CIFAR-10: {the paper's rules, the program's} x {shuffled, fixed batches}.

``python -m experiments.papers.alie.table1 rules OUT.jsonl`` trains every cell and appends it to
OUT; ``search`` changes one thing at a time under the mean, to find what would end at the paper's
42.2. Cells that OUT holds already are left out, so that a run that was stopped goes on. Gradients
and batches are those of ``plain``, whose equality with the engine ``parity`` shows; the rules are
the engine's, which are faster. One core, about 6 minutes a cell of 300 rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.papers.alie import plain
from fedrobust.aggregation import aggregate
from fedrobust.data import load
from fedrobust.models import build

PROGRAM: dict[str, dict[str, Any]] = {
    "mean": {"name": "mean"},
    "trimmed_mean": {"name": "trimmed_mean", "variant": "alie_code"},
    "krum": {"name": "krum", "variant": "alie_code"},
    "bulyan": {"name": "bulyan", "variant": "alie_code"},
}
PAPER: dict[str, dict[str, Any]] = {
    "mean": {"name": "mean"},
    "trimmed_mean": {"name": "trimmed_mean", "variant": "alie"},
    "krum": {"name": "krum"},
    "bulyan": {"name": "bulyan"},
}
RULES = {"paper": PAPER, "program": PROGRAM}


@dataclass(frozen=True)
class Cell:
    """One training run; the rest is the released program's defaults."""

    rules: str = "program"
    rule: str = "mean"
    fixed: bool = True
    seed: int = 1
    rounds: int = 300
    n: int = 51
    m: int = 12
    z: float = 1.5
    sign: int = -1
    lr: float = 0.1
    momentum: float = 0.9
    batch: int = 128
    network: str = "alie_cnn"
    decay: float = 0.0  # F of lr F / (t + F); 0: constant


def rules(seed: int) -> list[Cell]:
    """Return the cells of one seed, the most telling first; the mean is one rule in both."""
    order = [("program", rule, True) for rule in PROGRAM]
    order += [("paper", rule, True) for rule in PAPER if rule != "mean"]
    order += [("program", rule, False) for rule in PROGRAM]
    order += [("paper", rule, False) for rule in PAPER if rule != "mean"]
    return [Cell(rules=kind, rule=rule, fixed=fixed, seed=seed) for kind, rule, fixed in order]


def search(seed: int) -> list[Cell]:
    """Return cells that differ from the program's mean in one thing each, the likely ones first."""
    base = Cell(seed=seed)
    changed: list[dict[str, Any]] = [
        {"z": 1.0},
        {"momentum": 0.0},
        {"m": 0},  # what the others' accuracies in as many rounds are to be held against
        {"z": 0.5},
        {"m": 6},
        {"lr": 0.01},
        {"sign": 1},
        {"batch": 512},
        {"batch": 32},
        {"decay": 100.0},
        {"network": "mlp"},
        {"z": 0.3612},  # the paper's formula for (51, 12)
        {"lr": 0.03},
        {"m": 9},
    ]
    return [replace(base, **change) for change in changed]


@dataclass(frozen=True)
class Data:
    """CIFAR-10 as the program sees it: normalised by 0.5 and 0.5."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def prepared(root: Path | None) -> Data:
    """Load and normalise."""
    whole = load("cifar10", root=root)

    def normalised(images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(0.5).div_(0.5)

    return Data(
        (normalised(whole.train_images), whole.train_labels),
        (normalised(whole.test_images), whole.test_labels),
    )


def missing(cells: list[Cell], out: Path, rounds: int) -> Iterator[Cell]:
    """Yield the cells that ``out`` does not hold, which is read anew before each."""
    for cell in (replace(cell, rounds=rounds) for cell in cells):
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
        if asdict(cell) not in [json.loads(line)["cell"] for line in lines]:
            yield cell


def initial(network: str, seed: int) -> tuple[Tensor, plain.Shapes]:
    """Return the engine's initial weights of a network, (d,), and its tensors' shapes."""
    module = build(network, shape=(3, 32, 32), classes=10, mean=(), std=(), seed=seed)
    tensors = [p.detach() for p in module.parameters()]
    return torch.cat([t.reshape(-1) for t in tensors]), tuple(tuple(t.shape) for t in tensors)


def workers(cell: Cell, data: Data) -> list[Iterator[tuple[Tensor, Tensor]]]:
    """Return each worker's batches, all of them reproducible by the cell's seed alone."""
    images, labels = data.train
    drawn = np.random.default_rng(cell.seed)
    dealt = plain.shares(len(labels), cell.n, drawn)

    def taken(share: np.ndarray, draws: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in plain.batches(share, cell.batch, fixed=cell.fixed, generator=draws):
            yield images[batch], labels[batch]

    return [taken(share, drawn.spawn(1)[0]) for share in dealt]


def accuracy(vector: Tensor, shapes: plain.Shapes, network: plain.Network, test: Any) -> float:
    """Return the test accuracy in %."""
    parts = vector.split([int(np.prod(shape)) for shape in shapes])
    tensors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    right = 0
    with torch.inference_mode():
        for images, labels in zip(test[0].split(500), test[1].split(500), strict=True):
            right += int((network(tensors, images).argmax(1) == labels).sum())
    return 100 * right / len(test[1])


def measured(cell: Cell, data: Data) -> dict[str, Any]:
    """Train one cell; return its accuracies every 5 rounds and the best of them, in %."""
    begun = time.process_time()
    vector, shapes = initial(cell.network, cell.seed)
    network = plain.cnn if cell.network == "alie_cnn" else plain.mlp
    spec = RULES[cell.rules][cell.rule]
    setting = plain.Setting(cell.n, cell.m, cell.z, cell.sign, cell.lr, cell.momentum, cell.decay)

    def rule(sent: np.ndarray, m: int) -> np.ndarray:
        given = spec if spec["name"] == "mean" else {**spec, "f": m}
        return aggregate(torch.from_numpy(sent), given).numpy()

    curve = []
    steps = plain.train(vector, shapes, network, workers(cell, data), rule, setting)
    for turn, reached in zip(range(1, cell.rounds + 1), steps, strict=False):
        if turn % 5 == 0:
            curve.append(accuracy(reached, shapes, network, data.test))
    seconds = time.process_time() - begun
    return {"cell": asdict(cell), "best": max(curve), "curve": curve, "cpu_seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    """Write what was measured as Markdown, a line a cell: what differs from the program's mean."""
    lines = ["| changed | rounds | best % | last % | seed |", "|---|---|---|---|---|"]
    usual = asdict(Cell())
    for row in rows:
        cell = row["cell"]
        changed = {k: v for k, v in cell.items() if v != usual[k] and k not in ("seed", "rounds")}
        words = ", ".join(f"{k} = {v}" for k, v in changed.items()) or "nothing"
        numbers = [f"{row['best']:.1f}", f"{row['curve'][-1]:.1f}"]
        lines.append(f"| {words} | {cell['rounds']} | {' | '.join(numbers)} | {cell['seed']} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, print each cell's best as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rules", "search"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--most", type=int, help="stop after so many cells")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--table", action="store_true", help="print OUT as Markdown; train nothing")
    chosen = parser.parse_args()
    if chosen.table:
        print(table([json.loads(line) for line in chosen.out.read_text().splitlines()]))
        return
    made = rules if chosen.what == "rules" else search
    data = prepared(chosen.data_root)
    cells = [cell for seed in chosen.seeds for cell in made(seed)]
    for cell in islice(missing(cells, chosen.out, chosen.rounds), chosen.most):
        row = measured(cell, data)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['best']:.2f}", cell, flush=True)


if __name__ == "__main__":
    main()
