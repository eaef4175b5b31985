"""ALIE's Table 2, CIFAR-10: which difference of the released program plants the backdoor.

``python -m experiments.papers.alie.table2 OUT.jsonl --data-root FOLDER`` trains under a server that
takes the colluders' vector in every round, as Krum does here nearly always: a ceiling for every
rule, and cheap, since no honest gradient is needed. Ours, each of the program's differences
alone, all of them, all but one. Finished cells of OUT are left out. About a minute a cell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.papers.alie import plain
from fedrobust.attacks.alie_backdoor import alie_backdoor, drawn, success_rate
from fedrobust.data import Dataset, load
from fedrobust.evaluation import evaluate
from fedrobust.models import build
from fedrobust.seeds import generator
from fedrobust.vector import FlatModel

Settings = dict[str, Any]
# The program's loss is 1 / alpha times the paper's: its plain steps of 0.1 are 0.5 of ours.
DIFFERENCES: dict[str, Settings] = {
    "steps": {"local_lr": 0.5},
    "stamp": {"value": 484},
    "images": {"train_images": 2000},
    "sign": {"released_code": True},
}
EVERY = 10  # rounds
TESTED = 2000  # images


def cells() -> dict[str, Settings]:
    """Return name -> settings: all, none, one alone, all but one."""

    def joined(names: list[str]) -> Settings:
        return {k: v for name in names for k, v in DIFFERENCES[name].items()}

    names = list(DIFFERENCES)
    alone = {f"only {name}": joined([name]) for name in names}
    without = {f"all but {name}": joined([n for n in names if n != name]) for name in names}
    return {"all": joined(names), "none": {}} | alone | without


def colluders(data: Dataset, seed: int, n: int = 51, m: int = 12) -> list[np.ndarray]:
    """Return which images the first m of n workers hold."""
    return plain.shares(len(data.train_labels), n, np.random.default_rng(seed))[:m]


def trained(data: Dataset, seed: int, settings: Settings, rounds: int) -> Iterator[Settings]:
    """Yield accuracies after every ``EVERY`` rounds, in %."""
    half = (0.5, 0.5, 0.5)
    module = build("alie_cnn", shape=data.shape, classes=10, mean=half, std=half, seed=seed)
    model, held = FlatModel(module), colluders(data, seed)
    pool = [data.train_images[share] for share in held]
    normalised = [part.float().div(255).sub(0.5).div(0.5) for part in pool]
    labels = [data.train_labels[share] for share in held]
    drawing = np.random.default_rng(seed)
    orders = [
        plain.batches(np.arange(len(share)), 128, fixed=True, generator=drawing) for share in held
    ]
    weights, velocity = model.vector.clone(), torch.zeros(model.d)
    for turn in range(1, rounds + 1):
        batches = [
            (x[b], y[b]) for x, y, b in zip(normalised, labels, map(next, orders), strict=True)
        ]
        view = torch.stack([plain.gradient(weights, model.shapes, plain.cnn, b) for b in batches])
        step = alie_backdoor(
            view, model=model, start=weights, images=pool[0], pool=pool, lr=0.1,
            generator=generator(seed, "attack", round=turn), **settings,
        )  # fmt: skip
        velocity = 0.9 * velocity + step
        weights = weights - 0.1 * velocity
        if turn % EVERY == 0:
            model.load(weights)
            yield {"round": turn} | measured(model, data, pool, seed, turn, settings)


def measured(
    model: FlatModel, data: Dataset, pool: list[Tensor], seed: int, turn: int, settings: Settings
) -> dict[str, float]:
    """Return accuracy, success on held-out images, and as the program measures it, in %."""
    held_out = data.test_images[:TESTED], data.test_labels[:TESTED]
    pattern = {"value": settings.get("value", 255)}
    count = settings.get("train_images", 0)
    same = generator(seed, "attack", round=turn)  # draws what the colluders have just trained on
    seen = drawn(pool, count, same) if count else pool[0]
    # Whatever they are: all count, as in the program.
    unlabelled = torch.full((len(seen),), -1)
    return {
        "benign": 100 * evaluate(model.module, *held_out).accuracy,
        "held_out": 100 * success_rate(model.module, *held_out, **pattern),
        "trained_on": 100
        * success_rate(model.module, seen, unlabelled, all_classes=True, **pattern),
    }


def table(rows: list[Settings]) -> str:
    """Write what was measured as Markdown: success at the first, the middle and the last look."""
    lines = [
        "| differences | rounds | benign, best | held out | as the program | seed |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        curve = row["curve"]
        looks = (curve[0], curve[len(curve) // 2], curve[-1])
        held, seen = (
            " / ".join(f"{look[key]:.1f}" for look in looks) for key in ("held_out", "trained_on")
        )
        best = max(look["benign"] for look in curve)
        cells = [row["cell"], row["rounds"], f"{best:.1f}", held, seen, row["seed"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--most", type=int, help="stop after so many cells")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--table", action="store_true", help="print OUT as Markdown; train nothing")
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in given.out.read_text().splitlines()]))
        return
    data = load("cifar10", root=given.data_root)
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    done = [(row["cell"], row["seed"], row["rounds"]) for row in map(json.loads, lines)]
    wanted = [(name, seed, given.rounds) for seed in given.seeds for name in cells()]
    for name, seed, rounds in islice((w for w in wanted if w not in done), given.most):
        curve = list(trained(data, seed, cells()[name], rounds))
        row = {"cell": name, "seed": seed, "rounds": rounds, "curve": curve}
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, {k: round(v, 1) for k, v in curve[-1].items()}, flush=True)


if __name__ == "__main__":
    main()
