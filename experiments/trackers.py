"""Trackers: the rows of a run in TensorBoard, MLflow or Weights & Biases as they come.

Each is an optional extra; a tracker is one function of a folder that returns two: what takes a row,
and what ends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiments.observers import guarded, guarded_end
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.spec import suggest

Row = dict[str, Any]
OnRow = Callable[[Experiment, Row], None]
Tracker = tuple[OnRow, Callable[[], None]]


def numbers(row: Row, prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of a row, nested ones with a slash: ``impact/cosine``."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}/")
        # By type: to ``isinstance`` a flag is a number.
        elif type(value) in (int, float) and key != "round" and math.isfinite(value):
            found[prefix + key] = float(value)
    return found


def tensorboard(folder: Path) -> Tracker:
    """Write event files under ``folder``/tensorboard, one folder a run."""
    from torch.utils.tensorboard import SummaryWriter

    writers: dict[str, Any] = {}

    def on_row(experiment: Experiment, row: Row) -> None:
        name = f"{experiment.name.replace(' / ', '-')}-{experiment.run_id}"
        if name not in writers:
            writers[name] = SummaryWriter(str(folder / "tensorboard" / name))
            writers[name].add_text("experiment", f"```toml\n{experiment.to_toml()}\n```")
        for key, value in numbers(row).items():
            writers[name].add_scalar(key, value, row["round"])

    def close() -> None:
        for writer in writers.values():
            writer.close()

    return on_row, close


def mlflow(folder: Path) -> Tracker:
    """Log to the MLflow of ``MLFLOW_TRACKING_URI``: one experiment, one run a run."""
    import mlflow as client  # type: ignore[import-not-found,unused-ignore]

    client.set_experiment(folder.name)
    runs: dict[str, str] = {}
    # Not the module's own functions: they know one active run, and rows of several come mixed.
    service = client.MlflowClient()

    def on_row(experiment: Experiment, row: Row) -> None:
        if experiment.run_id not in runs:
            group = client.get_experiment_by_name(folder.name).experiment_id
            started = service.create_run(group, run_name=experiment.name)
            runs[experiment.run_id] = started.info.run_id
            service.log_dict(started.info.run_id, experiment.to_dict(), "experiment.json")
        for key, value in numbers(row).items():
            service.log_metric(runs[experiment.run_id], key, value, step=row["round"])

    def close() -> None:
        for run in runs.values():
            service.set_terminated(run)

    return on_row, close


def wandb(folder: Path) -> Tracker:
    """Log to Weights & Biases, project fedrobust, one run a run, grouped by sweep."""
    import wandb as client  # type: ignore[import-not-found,unused-ignore]

    runs: dict[str, Any] = {}

    def on_row(experiment: Experiment, row: Row) -> None:
        if experiment.run_id not in runs:
            runs[experiment.run_id] = client.init(
                project="fedrobust",
                group=folder.name,
                name=experiment.name,
                config=experiment.to_dict(),
                dir=str(folder),
                # Runs of a sweep are open at once: a second would by default be, or end, the first.
                reinit="create_new",
            )
        runs[experiment.run_id].log(numbers(row), step=row["round"])

    def close() -> None:
        for run in runs.values():
            run.finish()

    return on_row, close


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}


@contextmanager
def tracking(
    names: list[str], folder: Path, *others: OnRow, strict: bool = False
) -> Iterator[OnRow]:
    """Yield one callback that feeds every named tracker, and ``others``.

    A tracker that raises later on is one warning, and the run goes on; with ``strict`` it ends the
    run. The ``others`` are called as they are, and first.

    Raises
    ------
    ConfigError
        For an unknown tracker, one that is not installed, or one that cannot start.
    """
    with ExitStack() as stack:
        callbacks = list(others)
        for name in names:
            if name not in TRACKERS:
                hint = suggest(name, list(TRACKERS))
                raise ConfigError([f"unknown tracker {name!r}; {hint}"])
            try:
                on_row, close = TRACKERS[name](folder)
            except ImportError as error:
                wanted = f"pip install 'fedrobust[{name}]'"
                raise ConfigError([f"tracker {name!r} is not installed: {wanted}"]) from error
            except Exception as error:  # foreign code, and nothing has been run yet
                wrong = f"tracker {name!r} cannot start: {type(error).__name__}: {error}"
                raise ConfigError([wrong]) from error
            stack.callback(guarded_end(close, f"tracker {name!r}", strict=strict))
            callbacks.append(guarded(on_row, f"tracker {name!r}", strict=strict))

        def on_every_row(experiment: Experiment, row: Row) -> None:
            for callback in callbacks:
                callback(experiment, row)

        yield on_every_row
