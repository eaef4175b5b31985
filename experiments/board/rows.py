"""The rows of the board: what makes one valid, reading them, and the table of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.board.protocol import BUDGETS, PROTOCOL
from experiments.board.score import score
from fedrobust.attacks.members import VERSION as MEMBERS
from fedrobust.experiment.schema import ConfigError

CLEAN = 0.05  # accuracy lost without an attack
HERE = Path(__file__).parent
Row = dict[str, Any]
KEYS: dict[str, type | tuple[type, ...]] = {
    "protocol": int, "budget": str, "rule": str, "settings": dict, "origin": str, "fedrobust": str,
    "members": int, "seeds": list, "tuned": dict, "cells": list, "score": dict,
    "aggregation_ms": dict, "runs": int, "seconds": (int, float), "machine": dict, "left_out": list,
}  # fmt: skip
ATTACKED = ("auto", "interval", "winner", "fixed", "fixed_accuracy", "flags")


def wrong(row: Any) -> list[str]:
    """Return everything that makes a row invalid, one sentence each."""
    if not isinstance(row, Mapping):
        return [f"a row is a JSON object, got {type(row).__name__}"]
    found = [f"the key {key!r} is missing" for key in KEYS if key not in row]
    found += [f"unknown key {key!r}" for key in row if key not in KEYS]
    found += [
        f"{key!r} has the wrong type: {type(row[key]).__name__}"
        for key, kind in KEYS.items()
        # To Python true is a whole number.
        if key in row and (not isinstance(row[key], kind) or isinstance(row[key], bool))
    ]
    return found or _wrong_values(row)


def _wrong_values(row: Mapping[str, Any]) -> list[str]:
    if row["protocol"] != PROTOCOL:
        return [f"protocol {row['protocol']} is not {PROTOCOL}: its numbers do not compare"]
    if row["budget"] not in BUDGETS:
        return [f"unknown budget {row['budget']!r}; choose from {', '.join(BUDGETS)}"]
    found, budget = [], BUDGETS[row["budget"]]
    if row["members"] != MEMBERS:
        found.append(f"attack 'auto' was version {row['members']}, it is {MEMBERS}")
    if row["seeds"] != list(budget.seeds):
        found.append(f"seeds are {list(budget.seeds)} in this protocol, got {row['seeds']}")
    names, wanted = [c.get("cell") for c in row["cells"]], [c.name for c in budget.cells]
    if names != wanted:
        missing = [name for name in wanted if name not in names]
        found.append(f"cells are not those of the protocol; missing: {', '.join(missing) or '-'}")
    for cell in row["cells"]:
        found += _wrong_cell(cell)
    # Computed again: a row whose cells somebody edits does not keep its score.
    if not found and row["score"] != score(row["cells"]):
        found.append("the score is not that of the cells")
    return found


def _wrong_cell(cell: Mapping[str, Any]) -> list[str]:
    name = cell.get("cell")
    if "refused" in cell:
        return [] if cell["refused"] else [f"{name}: refused without a reason"]
    needed = ("clean", "stability", "seconds", *(ATTACKED if cell.get("byzantine") else ()))
    found = [f"{name}: {key!r} is missing" for key in needed if key not in cell]
    for key in ("clean", "auto", "fixed_accuracy"):
        value = cell.get(key)
        if key in cell and not (isinstance(value, int | float) and 0 <= value <= 1):
            found.append(f"{name}: {key} must be in 0..1, got {value!r}")
    # ``auto`` is the least over its members, and the published ones are among them.
    if not found and cell.get("byzantine") and cell["auto"] > cell["fixed_accuracy"]:
        found.append(f"{name}: auto leaves more than its own member {cell['fixed']}")
    return found


def read(folder: Path | None = None) -> list[Row]:
    """Read every row of the board.

    Raises
    ------
    ConfigError
        For a row that is not valid, with the file and everything that is wrong.
    """
    rows, errors = [], []
    # By name: a folder's own order differs from machine to machine, and rows of one score would
    # swap.
    for path in sorted((folder or HERE).glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            errors.append(f"{path.name}: no JSON: {error}")
            continue
        errors += [f"{path.name}: {sentence}" for sentence in wrong(row)]
        rows.append(row)
    if errors:
        raise ConfigError(errors)
    return rows


def write(row: Row, folder: Path) -> Path:
    """Write a row under its rule's name.

    Raises
    ------
    ConfigError
        If it is not valid: a mistake of the program.
    """
    if sentences := wrong(row):
        raise ConfigError(sentences)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row['rule'].replace('+', '-')}.{row['budget']}.json"
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line per rule, the best worst case first: accuracies in per cent.

    ``worst`` is the lowest accuracy under ``auto`` with up to 20 % attackers; then without an
    attack, each attacked cell, and what an aggregation costs.
    """
    ordered = sorted(rows, key=lambda row: -_number(row["score"]["worst"]))
    lines = []
    for row in ordered:
        line = {"rule": _named(row), "worst": _percent(row["score"]["worst"])}
        plain = [c["clean"] for c in row["cells"] if "clean" in c]
        line["no attack, lowest"] = _percent(min(plain)) if plain else "-"
        for cell in row["cells"]:
            if cell["byzantine"]:
                line[cell["cell"]] = "refused" if "refused" in cell else _percent(cell["auto"])
        line["ms"] = f"{row['aggregation_ms']['ms']:g}"
        line["budget"] = row["budget"]
        lines.append(line)
    return pd.DataFrame(lines).set_index("rule") if lines else pd.DataFrame()


def doubts(rows: Sequence[Row]) -> list[str]:
    """Say why a number of the board may be wrong: flags, and what is lost without an attack."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        for cell in row["cells"]:
            for flag in cell.get("flags", ()):
                lines.setdefault(f"{_named(row)}: {flag}", []).append(cell["cell"])
    told = [f"{line} ({', '.join(cells)})" for line, cells in lines.items()]
    return [*told, *_lost_clean(rows)]


def _lost_clean(rows: Sequence[Row]) -> list[str]:
    """Compare each cell without an attack with the best rule of the same budget there."""
    best: dict[tuple[Any, str], tuple[float, str]] = {}
    for row in rows:
        for cell in row["cells"]:
            key = row.get("budget"), cell["cell"]
            mine = cell.get("clean", -1.0), _named(row)
            best[key] = max(best.get(key, mine), mine)
    return [
        f"{_named(row)} loses {100 * (top - cell['clean']):.1f} points without an attack in"
        f" {cell['cell']}, against {name}"
        for row in rows
        for cell in row["cells"]
        for top, name in [best[row.get("budget"), cell["cell"]]]
        if "clean" in cell and top - cell["clean"] > CLEAN
    ]


def _named(row: Row) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items())
    return f"{row['rule']} ({settings})" if settings else row["rule"]


def _number(value: float | None) -> float:
    # Without a score it comes last.
    return -math.inf if value is None else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
