"""fedrobust: Byzantine-robust and adversarially robust federated learning on Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedrobust.version import __version__

if TYPE_CHECKING:
    from experiments.results import Results

__all__ = ["__version__", "simulate"]


def simulate(experiment: Any, *, grid: str = "in_process", **overrides: Any) -> Results:
    """Run one experiment and return its results.

    Parameters
    ----------
    experiment
        A TOML file, TOML text, a plain table, or an ``Experiment``.
    grid
        ``"in_process"``, or ``"flower"`` for Flower's own simulation engine on Ray.
    **overrides
        Keys of the configuration set on top; ``__`` stands for the dot: ``server__lr=0.05``.
        ``rule`` may be a function ``(updates, *, f) -> (d,)`` of your own, or a Flower strategy;
        ``attack`` a function ``(honest, *, n, f) -> (f, d)``. Further: ``data_root``; ``device``,
        "cpu" or "cuda";
        ``on_row(experiment, row)``, called as the rounds end (an error in it is a warning, unless
        ``strict=True``); ``keep_models=True`` for ``Results.state_dict``.

    Raises
    ------
    ConfigError
        With everything that is wrong with the configuration.
    """
    from experiments.simulation import simulate as run  # upward on purpose: a door, not a wall

    return run(experiment, grid=grid, **overrides)
