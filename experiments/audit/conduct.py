"""From a folder to an audit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.audit.application import read, tree_hash
from experiments.audit.cell import Cell
from experiments.audit.phases import Phases
from experiments.audit.plan import Options, check_options, with_members
from experiments.audit.processes import Cells
from experiments.audit.report import Audit
from fedrobust import plugins
from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import Spec, SpecError

Say = Callable[[int, int, str], None]


def audit(
    app: str | Path,
    *,
    attacks: Sequence[Spec] | None = None,
    defences: Sequence[Any] | None = None,
    f: int | None = None,
    metric: str | None = None,
    seeds: int = 3,
    grid: str = "in_process",
    quick: bool = False,
    fail_under: float = 1.0,
    tolerance: float = 0.05,
    nodes: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    workers: int | None = None,
    cell: str | None = None,
    use: Sequence[str | Path] = (),
    say: Say = lambda done, planned, text: None,
) -> Audit:
    """Run an app as it is, with Byzantine nodes, and with defences; see ``fedrobust.audit``."""
    application = read(app, overrides=overrides, nodes=nodes)
    options = Options(
        attacks=with_members(attacks), defences=defences, f=f, metric=metric, seeds=seeds,
        grid=grid, quick=quick, threshold=fail_under, tolerance=tolerance, limit=time_limit,
        workers=workers, use=[str(file) for file in use],
    )  # fmt: skip
    try:
        _load(options.use)
        check_options(options, application.nodes)
        one = Cell.of(cell) if cell is not None else None
    except SpecError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    start, before = time.monotonic(), tree_hash(application.folder)
    # The phases set another limit before the first cell.
    with Cells(application, limit=60.0, workers=workers, use=options.use) as cells:
        phases = Phases(application, options, cells, say)
        outcome = phases.only(one) if one is not None else phases.conduct()
    return Audit.of(
        application,
        options,
        outcome,
        hashes=(before, tree_hash(application.folder)),
        seconds=time.monotonic() - start,
        versions={name: _version(name) for name in ("fedrobust", "flwr", "torch", "numpy")},
    )


def _load(files: Sequence[str]) -> None:
    """Load files of the user's and leave no compiled copy beside them: they may be the app's."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        for file in files:
            plugins.use(file)
    finally:
        sys.dont_write_bytecode = before


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
