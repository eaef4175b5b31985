"""Read what a report is made of from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report.contents import Gathered
from experiments.report.page import render
from experiments.results import Results, load
from fedrobust.experiment.schema import ConfigError


def write(folders: Sequence[Path], path: Path, *, data_root: str | None = None) -> Path:
    """Write the report of some run folders to ``path`` and return it."""
    path.write_text(build(folders, data_root=data_root), encoding="utf-8")
    return path


def build(folders: Sequence[Path], *, data_root: str | None = None) -> str:
    """Return one self-contained page about some run folders; see ``page.render``.

    Raises
    ------
    ConfigError
        If no folder holds a finished round.
    """
    return render(gather(folders), data_root=data_root)


def folders_in(folder: Path) -> list[Path]:
    """Return the run folders of a run or of a sweep, by name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if (folder / "config.toml").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/config.toml"))
    if not found:
        raise ConfigError([f"no run in {str(folder)!r}: it holds no config.toml"])
    return found


def gather(folders: Sequence[Path]) -> Gathered:
    """Read run folders; one without a finished round is left out.

    Raises
    ------
    ConfigError
        If no folder holds a round.
    """
    started = [path for path in folders if (path / "rounds.jsonl").is_file()]
    results = load(started)
    kept = [
        i
        for i, (_, rows) in enumerate(results.runs)
        if any("loss" in r or "accuracy" in r for r in rows)
    ]
    if not kept:
        raise ConfigError([f"no finished round in {', '.join(map(str, folders[:3]))}"])
    environments: list[dict[str, Any]] = []
    for i in kept:
        path = started[i] / "environment.json"
        # The rows are the report: where they were computed is told if it is known.
        found = json.loads(path.read_text()) if path.is_file() else {}
        if found and found not in environments:
            environments.append(found)
    return Gathered(
        tuple(started[i] for i in kept),
        Results(tuple(results.runs[i] for i in kept)),
        tuple(environments),
    )
