"""Run an experiment: from this process, or through Flower's own engine."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from clients.node import Host
from experiments.grids import CARRIERS, FLOWER, Cluster, check_grid, servers_device
from experiments.hosts import check_hosts
from experiments.observers import guarded
from experiments.outcomes import NoStepWarning, stuck
from experiments.progress import following
from experiments.shipped import located
from experiments.torch_state import own_torch_state
from experiments.user_plugins import own_objects, plugged
from fedrobust import plugins
from fedrobust import secret as hidden
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.honoured import MODEL, RESUME, STOCK, refused_feature
from fedrobust.experiment.load import expand, names_a_file, override, read
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower import tensor_of
from fedrobust.plugins import Part
from fedrobust.runs.folder import RunFolder
from fedrobust.training.precision import tf32
from strategies.checkpointing import Checkpoints
from strategies.flower_strategy import StockStrategy
from strategies.session import run

if TYPE_CHECKING:
    from experiments.results import Results

Row = dict[str, Any]
LOCAL = Cluster()


def simulate(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    *,
    grid: str = "in_process",
    hosts: int = 0,
    device: str = "cpu",
    data_root: str | None = None,
    on_row: Callable[[Experiment, Row], None] = lambda experiment, row: None,
    keep_models: bool = False,
    strict: bool = False,
    progress: bool = False,
    workers: int = 0,
    ray_address: str = "local",
    **overrides: Any,
) -> Results:
    """Run one experiment (or each of its sweep) and return the results; see ``fedrobust``."""
    check_grid(grid)
    check_hosts(hosts, grid)
    check_device(device, grid)
    if isinstance(experiment, Mapping):
        own = own_objects(experiment)
        experiment = {key: value for key, value in experiment.items() if key not in own}
        overrides = own | overrides
    if grid == FLOWER and isinstance(overrides.get("rule"), Strategy):
        raise ConfigError(["a Flower strategy of yours runs in process, or on grid 'ray'"])
    watch = guarded(on_row, "on_row", strict=strict)
    runs: list[tuple[Experiment, list[Row]]] = []
    models: list[tuple[Tensor, Tensor | None]] = []
    dotted = {k.replace("__", "."): v for k, v in overrides.items()}
    with own_torch_state(), plugged(dotted) as own_parts:
        experiments = resolve(experiment, own_parts.named)
        check_against_data(experiments, data_root=data_root)
        with following(experiments, watch, wanted=progress, sent=grid != "in_process") as told:
            for e in experiments:
                rows = run_one(
                    e,
                    grid=grid,
                    hosts=hosts,
                    device=device,
                    data_root=data_root,
                    on_row=lambda row, e=e: told(e, row),  # type: ignore[misc]
                    on_model=(lambda *model: models.append(model)) if keep_models else None,
                    stock=own_parts.stock,
                    parts=own_parts.parts,
                    cluster=Cluster(address=ray_address, workers=workers),
                )
                runs.append((e, rows))
                if line := stuck(e, rows):
                    warnings.warn(line, NoStepWarning, stacklevel=2)
    vectors, statistics = zip(*models, strict=True) if models else ((), ())
    from experiments.results import Results  # pandas: no process of a sweep needs it

    return Results(tuple(runs), vectors, statistics, own_parts.parts)


def resolve(
    source: str | Path | Mapping[str, Any] | Experiment, overrides: Mapping[str, Any]
) -> list[Experiment]:
    """Turn any notation of an experiment into resolved experiments."""
    if isinstance(source, Experiment):
        source = source.to_dict()
    if isinstance(source, str | Path) and names_a_file(source):
        source = located(Path(source))
    document = read(source) if isinstance(source, str | Path) else dict(source)
    return expand(override(document, overrides))


def check_device(device: str, grid: str = "in_process") -> None:
    """Refuse a device that is unknown or not here; a Ray cluster is asked itself what it has.

    Raises
    ------
    ConfigError
        With what is at hand.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(
            [f"unknown device {device!r}; choose from cpu, cuda, cuda:0, cuda:1, ..."]
        )
    if grid == "ray":
        return
    have = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= have:
        raise ConfigError([f"device {device!r} is not here: PyTorch sees {have} GPU(s)"])


def check_features(experiments: Iterable[Experiment], *features: str) -> None:
    """Refuse what an experiment's mode does not honour, a key of ``FEATURES``.

    Raises
    ------
    ConfigError
        With the modes that honour it.
    """
    modes = dict.fromkeys(e.mode for e in experiments)
    wrong = [line for mode in modes for f in features for line in refused_feature(mode, f)]
    if wrong:
        raise ConfigError(wrong)


def run_one(
    experiment: Experiment,
    *,
    grid: str = "in_process",
    hosts: int = 0,
    device: str = "cpu",
    data_root: str | None = None,
    folder: RunFolder | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_model: Callable[[Tensor, Tensor | None], None] | None = None,
    stock: Strategy | None = None,
    resume: bool = False,
    secret: int | None = None,
    parts: Sequence[Part] = (),
    cluster: Cluster = LOCAL,
) -> list[Row]:
    """Run one resolved experiment and return its rows; ``folder`` records them as they come.

    ``on_model`` is called with the final model, a vector (d,), and BatchNorm's running statistics
    (b,), None without; not through Flower. With ``resume`` the run continues from the folder's
    checkpoint, if it has one. ``secret`` repeats the draws of a server that kept one; not
    through Flower. ``parts`` are objects of the user's, for other processes; in this one they stand
    in the tables already. ``cluster`` is for grid "ray".

    Raises
    ------
    ConfigError
        If an ensemble's final model is asked for, or a stock strategy is to be resumed.
    """
    wanted = {RESUME: resume, MODEL: on_model is not None, STOCK: stock is not None}
    check_features([experiment], *(name for name, given in wanted.items() if given))
    if resume and stock is not None:
        raise ConfigError([StockStrategy.unresumable])
    if grid == FLOWER:
        _check_not_through_flower(model=on_model, secret=secret)
        from experiments.flower_run import run_on_flower

        return run_on_flower(
            experiment,
            hosts=hosts,
            device=device,
            data_root=data_root,
            folder=folder,
            on_row=on_row,
            resume=resume,
            parts=parts,
            ray_address=cluster.address,
        )
    with recorded(experiment, folder, data_root, resume=resume, secret=secret) as (rows, points):
        # Of a run that continues: progress and trackers begin anew, and are shown what was before.
        for row in rows:
            on_row(row)

        def keep(row: Row) -> None:
            rows.append(row)
            if folder is not None:
                folder.append(row)
            on_row(row)

        final = carried(
            experiment,
            kept=folder.path.parent if folder is not None else None,
            data_root=data_root,
            device=device,
            on_row=keep,
            stock=stock,
            checkpoints=points,
            secret=secret,
            grid=grid,
            parts=parts,
            cluster=cluster,
        )
    if on_model is not None:
        running = final.get("statistics")
        statistics = None if running is None else tensor_of(running).clone()
        on_model(tensor_of(final["model"]).clone(), statistics)
    return rows


def _check_not_through_flower(**wanted: object) -> None:
    """Refuse what a run in Flower's processes cannot hand back or take."""
    sentences = {
        "model": "the final model is kept in process, or on grid 'ray'",
        "secret": "a server's secret is taken in process, or on grid 'ray'",
    }
    if wrong := [sentences[name] for name, given in wanted.items() if given is not None]:
        raise ConfigError(wrong)


@contextmanager
def recorded(
    experiment: Experiment,
    folder: RunFolder | None,
    data_root: str | None,
    *,
    resume: bool,
    secret: int | None,
) -> Iterator[tuple[list[Row], Checkpoints | None]]:
    """Hold the folder of a run, if it has one; give the rows that it continues, and checkpoints."""
    if folder is None:
        yield [], None
        return
    own_parts = plugins.identities(experiment.to_dict(), root=data_root)
    with folder.recording(resume=resume, own=own_parts):
        points = Checkpoints(folder.save, folder.saved)
        if secret is not None:
            hidden.write(folder.path / hidden.FILE, secret)
        yield folder.rows(), points


def carried(
    experiment: Experiment,
    *,
    grid: str,
    kept: Path | None,
    device: str,
    data_root: str | None,
    parts: Sequence[Part] = (),
    cluster: Cluster = LOCAL,
    **given: Any,
) -> Mapping[str, Any]:
    """Run an experiment's server in this process; return the final model's arrays.

    ``kept`` is the folder for what a run leaves beside its rows: tuning, images of attacks.
    """
    output = str(kept) if kept and experiment.ensemble.tunes else ""
    host = Host(data_root=data_root or "", device=device, output=output)
    servers = servers_device(device, grid)
    given |= {"data_root": data_root, "device": servers, "attacks": kept}
    exact = tf32(on=False, device=torch.device(servers))  # evaluation and rules, not training alone
    with (
        own_torch_state(),
        exact,
        quiet("flwr"),
        CARRIERS[grid](experiment, host, parts, cluster) as nodes,
    ):
        return run(nodes, experiment, **given)


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
