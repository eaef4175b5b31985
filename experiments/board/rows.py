"""The rows of the board: what makes one valid, reading them, and the table of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.board.protocol import BUDGETS, PROTOCOL, Cell
from experiments.board.score import score
from fedrobust.attacks.members import VERSION as MEMBERS
from fedrobust.experiment.schema import ConfigError

CLEAN = 0.05  # accuracy lost without an attack
HERE = Path(__file__).parent
Row = dict[str, Any]
KEYS: dict[str, type | tuple[type, ...]] = {
    "protocol": int, "budget": str, "rule": str, "settings": dict, "origin": str, "fedrobust": str,
    "members": int, "external": list, "seeds": list, "tuned": dict, "cells": list, "score": dict,
    "aggregation_ms": dict, "runs": int, "seconds": (int, float),
    "processor_seconds": (int, float, type(None)), "machine": dict, "left_out": list,
}  # fmt: skip
CLEAN_KEYS = ("clean", "clean_detail", "bytes_up", "bytes_down", "seconds")
ATTACKED = (
    "auto", "auto_detail", "interval", "winner", "fixed", "fixed_accuracy", "attacks", "flags",
)  # fmt: skip
DETAIL = ("stability", "by_class", "worst_class", "worst_client")


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
    for cell, one in zip(row["cells"], budget.cells, strict=False):
        found += _wrong_cell(cell, one)
    # Computed again: a row whose cells somebody edits does not keep its score.
    if not found and row["score"] != score(row["cells"]):
        found.append("the score is not that of the cells")
    return found


def _wrong_cell(cell: Mapping[str, Any], one: Cell) -> list[str]:
    name = one.name
    if (cell.get("clients"), cell.get("byzantine")) != (
        one.federation.settings["clients"],
        one.byzantine,
    ):
        return [f"{name}: clients and byzantine are not those of the protocol"]
    if "refused" in cell:
        return [] if cell["refused"] else [f"{name}: refused without a reason"]
    if "not_measured" in cell:
        allowed = cell["not_measured"] and one.federation.gpu
        return [] if allowed else [f"{name}: every machine can measure it"]
    needed = (*CLEAN_KEYS, *(ATTACKED if one.byzantine else ()))
    found = [f"{name}: {key!r} is missing" for key in needed if key not in cell]
    return found or [f"{name}: {sentence}" for sentence in _wrong_numbers(cell)]


def _wrong_numbers(cell: Mapping[str, Any]) -> list[str]:
    details = [key for key in ("clean_detail", "auto_detail") if key in cell]
    tables = [key for key in (*details, "attacks") if key in cell]
    if odd := [key for key in tables if not isinstance(cell[key], Mapping)]:
        return [f"{key} must be an object, got {type(cell[key]).__name__}" for key in odd]
    found = [f"{d}: {k!r} is missing" for d in details for k in DETAIL if k not in cell[d]]
    shares = {k: cell[k] for k in ("clean", "auto", "fixed_accuracy") if k in cell}
    shares |= {k: v for d in details for k, v in cell[d].items() if k.startswith("worst_")}
    found += [
        f"{key} must be in 0..1, got {value!r}"
        for key, value in (shares | cell.get("attacks", {})).items()
        if not (isinstance(value, int | float) and 0 <= value <= 1)
    ]
    # ``auto`` is the least over its members, and the published ones are among them.
    if not found and "auto" in cell and cell["auto"] != min(cell["attacks"].values()):
        found.append("auto is not the least that its attacks leave")
    if not found and "auto" in cell and cell["attacks"].get(cell["winner"]) != cell["auto"]:
        found.append("the winner is not the attack that leaves least")
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


def file_of(rule: str, budget: str, folder: Path) -> Path:
    """Return where a rule's row stands in a folder of rows."""
    return folder / f"{rule.replace('+', '-')}.{budget}.json"


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
    path = file_of(row["rule"], row["budget"], folder)
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line per rule, the best worst case first: accuracies in per cent.

    ``worst`` is the lowest accuracy under ``auto`` with up to 20 % attackers; then without an
    attack, each attacked cell, and what an aggregation costs.
    """
    lines = []
    for row in in_order(rows):
        line = {"rule": named(row), "worst": percent(row["score"]["worst"])}
        plain = [c["clean"] for c in row["cells"] if "clean" in c]
        line["no attack, lowest"] = percent(min(plain)) if plain else "-"
        for cell in row["cells"]:
            if cell["byzantine"]:
                line[cell["cell"]] = _told(cell)
        line["ms"] = f"{row['aggregation_ms']['ms']:g}"
        line["budget"] = row["budget"]
        lines.append(line)
    # Budgets have other cells.
    return pd.DataFrame(lines).set_index("rule").fillna("-") if lines else pd.DataFrame()


def _told(cell: Mapping[str, Any]) -> str:
    gap = next((word for word in ("refused", "not_measured") if word in cell), "")
    return gap.replace("_", " ") or percent(cell["auto"])


def doubts(rows: Sequence[Row]) -> list[str]:
    """Say why a number of the board may be wrong: flags, and what is lost without an attack."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        for cell in row["cells"]:
            for flag in cell.get("flags", ()):
                lines.setdefault(f"{named(row)}: {flag}", []).append(cell["cell"])
    told = [f"{line} ({', '.join(cells)})" for line, cells in lines.items()]
    return [*told, *_lost_clean(rows)]


def _lost_clean(rows: Sequence[Row]) -> list[str]:
    """Compare each cell without an attack with the best rule of the same budget there."""
    best: dict[tuple[Any, str], tuple[float, str]] = {}
    for row in rows:
        for cell in row["cells"]:
            key = row.get("budget"), cell["cell"]
            mine = cell.get("clean", -1.0), named(row)
            best[key] = max(best.get(key, mine), mine)
    return [
        f"{named(row)} loses {100 * (top - cell['clean']):.1f} points without an attack in"
        f" {cell['cell']}, against {name}"
        for row in rows
        for cell in row["cells"]
        for top, name in [best[row.get("budget"), cell["cell"]]]
        if "clean" in cell and top - cell["clean"] > CLEAN
    ]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, the best worst case first; rows of one score by name."""
    return sorted(rows, key=lambda row: (-_number(row["score"]["worst"]), named(row)))


def named(row: Row) -> str:
    """Return a rule with its settings, as a reader knows it."""
    settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items())
    return f"{row['rule']} ({settings})" if settings else row["rule"]


def _number(value: float | None) -> float:
    # Without a score it comes last.
    return -math.inf if value is None else value


def percent(value: float | None) -> str:
    """Write an accuracy in per cent."""
    return "-" if value is None else f"{100 * value:.1f}"
