"""Run an experiment: in this process, or through Flower's own engine."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from clients.client_app import app, train_together
from experiments.observers import guarded
from experiments.outcomes import NoStepWarning, stuck
from experiments.results import Results
from experiments.torch_state import own_torch_state
from experiments.user_plugins import is_own, plugged
from fedrobust import secret as hidden
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.load import expand, override, read
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower import InProcessGrid, tensor_of
from fedrobust.runs.folder import RunFolder
from fedrobust.spec import suggest
from strategies.checkpointing import Checkpoints
from strategies.session import run

Row = dict[str, Any]
GRIDS = ("in_process", "flower")


def simulate(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    *,
    grid: str = "in_process",
    device: str = "cpu",
    data_root: str | None = None,
    on_row: Callable[[Experiment, Row], None] = lambda experiment, row: None,
    keep_models: bool = False,
    strict: bool = False,
    **overrides: Any,
) -> Results:
    """Run one experiment (or each of its sweep) and return the results; see ``fedrobust``."""
    check_grid(grid)
    check_device(device)
    if grid != "in_process" and (
        own := [k for k in ("rule", "attack") if is_own(overrides.get(k))]
    ):
        raise ConfigError([f"a {own[0]} that is an object of yours runs in process only"])
    watch = guarded(on_row, "on_row", strict=strict)
    runs: list[tuple[Experiment, list[Row]]] = []
    vectors: list[Tensor] = []
    dotted = {k.replace("__", "."): v for k, v in overrides.items()}
    with own_torch_state(), plugged(dotted) as (named, stock):
        experiments = resolve(experiment, named)
        check_against_data(experiments, data_root=data_root)
        for e in experiments:
            rows = run_one(
                e,
                grid=grid,
                device=device,
                data_root=data_root,
                on_row=lambda row, e=e: watch(e, row),  # type: ignore[misc]
                on_model=vectors.append if keep_models else None,
                stock=stock,
            )
            runs.append((e, rows))
            if line := stuck(e, rows):
                warnings.warn(line, NoStepWarning, stacklevel=2)
    return Results(tuple(runs), tuple(vectors))


def resolve(
    source: str | Path | Mapping[str, Any] | Experiment, overrides: Mapping[str, Any]
) -> list[Experiment]:
    """Turn any notation of an experiment into resolved experiments."""
    if isinstance(source, Experiment):
        source = source.to_dict()
    document = read(source) if isinstance(source, str | Path) else dict(source)
    return expand(override(document, overrides))


def check_grid(grid: str) -> None:
    """Refuse an unknown grid.

    Raises
    ------
    ConfigError
        With what is allowed.
    """
    if grid not in GRIDS:
        raise ConfigError([f"unknown grid {grid!r}; {suggest(grid, list(GRIDS))}"])


def check_device(device: str) -> None:
    """Refuse a device that is unknown or not here.

    Raises
    ------
    ConfigError
        With what is at hand.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(
            [f"unknown device {device!r}; choose from cpu, cuda, cuda:0, cuda:1, ..."]
        )
    have = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= have:
        raise ConfigError([f"device {device!r} is not here: PyTorch sees {have} GPU(s)"])


def run_one(
    experiment: Experiment,
    *,
    grid: str = "in_process",
    device: str = "cpu",
    data_root: str | None = None,
    folder: RunFolder | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_model: Callable[[Tensor], None] | None = None,
    stock: Strategy | None = None,
    resume: bool = False,
    secret: int | None = None,
) -> list[Row]:
    """Run one resolved experiment and return its rows; ``folder`` records them as they come.

    ``on_model`` is called with the final model, a vector (d,); in process only. With ``resume`` the
    run continues from the folder's checkpoint, if it has one; a ``stock`` strategy's memory is its
    own, so that its runs have none. ``secret`` repeats the draws of a server that kept one; in
    process only.
    """
    if grid == "flower":
        if on_model is not None:
            raise ConfigError(["the final model is kept in process only"])
        if secret is not None:
            raise ConfigError(["a server's secret is taken in process only"])
        from experiments.flower_run import run_on_flower

        return run_on_flower(
            experiment,
            device=device,
            data_root=data_root,
            folder=folder,
            on_row=on_row,
            resume=resume,
        )
    rows: list[Row] = []
    checkpoints = None
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.recording(resume=resume))
            checkpoints = Checkpoints(folder.save, folder.saved) if stock is None else None
            if secret is not None:
                hidden.write(folder.path / hidden.FILE, secret)
            rows += folder.rows()
        for row in rows:
            on_row(row)

        def keep(row: Row) -> None:
            rows.append(row)
            if folder is not None:
                folder.append(row)
            on_row(row)

        stack.enter_context(own_torch_state())
        stack.enter_context(quiet("flwr"))
        kept = folder.path.parent if folder is not None else None
        run_config = {"experiment": experiment.to_toml(), "data-root": data_root or ""}
        run_config["device"] = device
        run_config |= {"output": str(kept)} if kept and experiment.ensemble.tunes else {}
        nodes = InProcessGrid(
            app, clients=experiment.clients, run_config=run_config, together=train_together
        )
        final = run(
            nodes,
            experiment,
            data_root=data_root,
            device=device,
            attacks=kept,
            on_row=keep,
            stock=stock,
            checkpoints=checkpoints,
            secret=secret,
        )
        if on_model is not None and "model" in final:
            on_model(tensor_of(final["model"]).clone())
    return rows


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a logger to its warnings inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
