"""fedrobust: Byzantine-robust and adversarially robust federated learning on Flower."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fedrobust.packages import check_packages
from fedrobust.version import __version__

if TYPE_CHECKING:
    from experiments.audit.report import Audit
    from experiments.results import Results

T = TypeVar("T")
__all__ = ["__version__", "plugin", "simulate"]
KINDS = ("model", "data", "partition", "loss", "metric", "rule", "attack")


def simulate(experiment: Any, *, grid: str = "in_process", **overrides: Any) -> Results:
    """Run one experiment and return its results.

    Parameters
    ----------
    experiment
        A TOML file, TOML text, a plain table, or an ``Experiment``.
    grid
        ``"in_process"``; ``"ray"`` for workers of ours on a Ray cluster, one a core or GPU, and
        ``"flower"`` for Flower's own simulation engine, on Ray, too: the same rows on each.
    **overrides
        Keys of the configuration set on top; ``__`` stands for the dot: ``server__lr=0.05``.
        ``model`` may be an ``nn.Module``, or a function that returns one and may take ``shape``, of
        one input, and ``classes``; ``data`` whatever ``fedrobust.data.as_dataset`` takes: arrays,
        map-style datasets, frames; ``loss`` a function ``(outputs, targets) -> scalar``;
        ``metrics`` a table of functions ``(outputs, targets) -> number``, the first of which tables
        show where the accuracy is not measured; ``partition`` a function ``(labels, *, clients,
        seed)`` that returns index tensors; ``rule`` a function ``(updates, *, f) -> (d,)``, or a
        Flower strategy; ``attack`` a function ``(honest, *, n, f) -> (f, d)``. Further:
        ``data_root``; ``device``, "cpu" or "cuda"; ``hosts``, processes of grid "flower", 0 for
        one a core or GPU; with grid "ray" ``workers``, how many, and
        ``ray_address``, which cluster: "local" (its own), "auto", HOST:PORT, "env" (RAY_ADDRESS);
        ``on_row(experiment, row)``, called as the rounds end (an error in it is a warning, unless
        ``strict=True``); ``progress=True``, a bar and a line as each run ends, in a notebook too;
        ``keep_models=True`` for ``Results.state_dict``.

    Raises
    ------
    ConfigError
        With everything that is wrong with the configuration.
    """
    # Before the import: a foreign package of that name would be taken without a word.
    check_packages()
    # Upward on purpose: the public name stands in the package that users import.
    from experiments.simulation import simulate as run

    return run(experiment, grid=grid, **overrides)


def plugin(kind: str, name: str = "") -> Callable[[T], T]:
    """Mark a function of a file of yours as a plug-in, for ``--use FILE.py``.

    Parameters
    ----------
    kind
        "model", "data", "partition", "loss", "metric", "rule" or "attack"; see ``simulate`` for
        what each is.
    name
        By which configurations ask for it; the function's own where empty.

    Raises
    ------
    ValueError
        For another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of plug-in; choose from {', '.join(KINDS)}")

    def mark(function: T) -> T:
        called = name or getattr(function, "__name__", "")
        # A mark, not an entry in a table: importing the file changes nothing else.
        function.__fedrobust_plugin__ = (kind, called)  # type: ignore[attr-defined]
        return function

    return mark


def audit(
    app: Any,
    *,
    attacks: Any = None,
    defences: Any = None,
    f: int | None = None,
    metric: str | None = None,
    seeds: int = 3,
    grid: str = "in_process",
    **settings: Any,
) -> Audit:
    """Report what happens to a Flower app when some of its clients are Byzantine.

    The app's code stays as it is and its folder untouched: copies of it run in processes of their
    own, as they are, with Byzantine nodes, and with defences.

    Parameters
    ----------
    app
        The folder of its pyproject.toml.
    attacks, defences
        Specs, such as ``"sign_flip:scale=4.0"`` and ``"nnm+trimmed_mean"``; None tries a list.
    f
        The most Byzantine nodes; None is a fifth of them, rounded up.
    metric
        The number to judge by: ``"NAME"``, ``"NAME:max"`` or ``"NAME:min"``; None looks for one.
    seeds
        Clean runs, whose spread is the measure of noise.
    grid
        ``"flower"`` repeats the clean and the worst run in Flower's own engine.
    **settings
        ``quick``, ``fail_under``, ``tolerance``, ``nodes``, ``overrides`` (of the app's run
        configuration), ``time_limit``, ``workers``, ``cell``, ``say``, ``use`` (Python files with
        rules and attacks of your own, for ``defences`` and ``attacks`` to name).

    Returns
    -------
    Audit
        ``.verdict``, ``.cells`` (a DataFrame), ``.to_json()``, ``.to_html()``.

    Raises
    ------
    ConfigError
        For a folder without an app, or a setting out of range.
    SpecError
        For an unknown attack or rule.
    """
    from experiments.audit.conduct import audit as conduct  # upward on purpose, as in ``simulate``

    return conduct(
        app, attacks=attacks, defences=defences, f=f, metric=metric, seeds=seeds, grid=grid,
        **settings,
    )  # fmt: skip
